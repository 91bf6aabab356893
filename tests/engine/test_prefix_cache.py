"""The radix tree of cached paths, without a device."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.capacity import Capacity
from deft_jax.engine import prefix_cache
from deft_jax.engine.eviction import count_evictable, evict
from deft_jax.engine.prefix_cache import CachedNode, PrefixCache

CAPACITY = Capacity(requests=3, rows=6, nodes=12, pages=16, page_size=4, chunk=8)


@pytest.fixture
def splits_anywhere(monkeypatch):
    monkeypatch.setattr(prefix_cache, "MIN_PART", 1)


def add(cache: PrefixCache, parent: CachedNode, text: str) -> CachedNode:
    node = cache.add(parent, list(map(ord, text)))
    node.is_fed = True
    return node


def ids(text: str) -> list[int]:
    return list(map(ord, text))


@pytest.mark.usefixtures("splits_anywhere")
def test_the_example_of_a_match():
    cache = PrefixCache()
    above = add(cache, cache.top, "abcd")
    ef, xy = add(cache, above, "ef"), add(cache, above, "xy")
    found = cache.match(ids("abcdexz"), 7)
    assert (found.node, found.tokens, found.part, found.splits) == (ef, 5, 1, True)
    found = cache.match(ids("abcdxyz"), 7)
    assert (found.node, found.tokens, found.splits) == (xy, 6, False)
    found = cache.match(ids("abcdxyz"), 5)
    assert (found.node, found.tokens, found.part) == (xy, 5, 1)
    assert cache.match(ids("b"), 1).node is cache.top


def test_what_is_below_any_of_equal_siblings_is_found():
    """The same prompt twice, with two answers: each has its own last token above."""
    cache = PrefixCache()
    prompt = add(cache, cache.top, "p" * 40)
    first, second = (add(cache, prompt, ":") for _ in range(2))
    add(cache, first, "yes")
    no = add(cache, second, "no")
    found = cache.match(ids("p" * 40 + ":no."), 99)
    assert (found.node, found.tokens, found.splits) == (no, 43, False)
    assert [node.used_at == no.used_at for node in (prompt, second, first)] == [
        True,
        True,
        False,
    ]


def test_of_equal_nodes_one_that_is_fed_is_taken():
    cache = PrefixCache()
    cache.add(cache.top, ids("abc"))
    fed = add(cache, cache.top, "abc")
    assert cache.match(ids("abcd"), 4).node is fed


@given(
    st.lists(st.tuples(st.integers(0, 20), st.text("ab", min_size=1, max_size=3))),
    st.text("ab", max_size=12),
)
def test_the_longest_path_is_found(added, prompt):
    cache = PrefixCache()
    nodes = [(cache.top, "")]
    for above, text in added:
        parent, path = nodes[above % len(nodes)]
        nodes.append((add(cache, parent, text), path + text))
    longest = max(len(path) for _, path in nodes if prompt.startswith(path))
    found = cache.match(ids(prompt), len(prompt))
    assert found.tokens == longest and not found.splits
    assert (
        "".join(
            chr(token)
            for node in reversed(list(found.node.lineage()))
            for token in node.tokens
        )
        == prompt[:longest]
    )


def test_a_short_part_of_a_node_is_not_worth_a_split():
    cache = PrefixCache()
    add(cache, cache.top, "a" * 40)
    begin = "a" * (prefix_cache.MIN_PART - 1)
    assert cache.match(ids(begin + "xx"), 99).tokens == 0
    found = cache.match(ids(begin + "axx"), 99)
    assert (found.tokens, found.splits) == (prefix_cache.MIN_PART, True)


def test_a_split_leaves_the_object_to_the_end_of_the_path():
    cache = PrefixCache()
    node = add(cache, cache.top, "abcdef")
    below = add(cache, node, "x")
    node.pins, node.node = 2, 5
    upper = cache.split(node, 2)
    assert (upper.tokens, node.tokens) == (ids("ab"), ids("cdef"))
    assert node.parent is upper and below.parent is node
    assert (upper.pins, node.pins, upper.is_fed) == (0, 2, True)
    assert cache.match(ids("abcdefx"), 7).node is below


def test_the_longest_unused_leaf_goes_first_and_then_what_is_above():
    cache = PrefixCache()
    a = add(cache, cache.top, "a" * 8)
    b, c = add(cache, a, "b" * 8), add(cache, a, "c" * 8)
    d = add(cache, cache.top, "d" * 8)
    cache.match(ids("a" * 8 + "b" * 8), 16)
    assert cache.evictable() == [c, d, b]
    assert evict(cache, CAPACITY, 3, 0) == [c, d]
    assert evict(cache, CAPACITY, 99, 0) == [b, a]
    assert list(cache.nodes()) == []


def test_what_is_used_or_pinned_stays():
    cache = PrefixCache()
    a = add(cache, cache.top, "a" * 8)
    b, c = add(cache, a, "b" * 8), add(cache, a, "c" * 8)
    b.users, c.pins = 1, 1
    assert count_evictable(cache, CAPACITY) == (0, 0)
    assert evict(cache, CAPACITY, 9, 9) == []
    assert evict(cache, CAPACITY, 9, 9, pinned=True) == [c]
    b.users = 0
    assert count_evictable(cache, CAPACITY) == (4, 2)
    assert evict(cache, CAPACITY, 0, 1) == [b]


def test_what_is_being_fed_is_not_evicted():
    cache = PrefixCache()
    cache.add(cache.top, ids("abc"))
    assert cache.evictable() == []


@pytest.mark.usefixtures("splits_anywhere")
@given(st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=12))
def test_a_match_is_the_longest_beginning_that_was_added(texts):
    """Each prompt is looked up, split where it parts, and added, as an engine does."""
    cache, added = PrefixCache(), []
    for text in texts:
        found = cache.match(ids(text), len(text))
        longest = max((_common(text, other) for other in added), default=0)
        assert found.tokens == longest
        node = cache.split(found.node, found.part) if found.splits else found.node
        if rest := text[found.tokens :]:
            add(cache, node, rest)
        added.append(text)
        paths = {_path(node) for node in cache.nodes()}
        assert all(other in paths for other in added)


def _common(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
        min(len(a), len(b)),
    )


def _path(node: CachedNode) -> str:
    text = ""
    above: CachedNode | None = node
    while above is not None:
        text, above = "".join(map(chr, above.tokens)) + text, above.parent
    return text
