"""Splitting nodes and joining chains of them; random ones are in page accounting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.tree import branching, counting, relabel
from deft_jax.tree.appending import append
from deft_jax.tree.state import NO_NODE, OUT_OF_NODES, Tree, replace
from tests.support.tree_invariants import assert_same

NODES, PAGES, PAGE_SIZE, ROWS = 12, 8, 4, 4

branch = jax.jit(branching.branch)
grow = jax.jit(append)


@pytest.fixture(params=[0, counting.MAX_NODE_PAIRS], ids=["summed", "compared"])
def either(request, monkeypatch):
    """Count both ways: by comparing all pairs, and as forests of many nodes do."""
    monkeypatch.setattr(counting, "MAX_NODE_PAIRS", request.param)


@functools.cache
def compiled(operation, limit):
    """Return a jitted operation of its own for each `MAX_NODE_PAIRS`."""
    return jax.jit(lambda *arguments: operation(*arguments))


def ints(*values):
    return jnp.array(values, jnp.int32)


def rows_of(*nodes):
    return ints(*nodes, *[NODES] * (ROWS - len(nodes)))


def add(tree, parent, tokens, *, draft=False, shares=False):
    """Add a child with the tokens 100, 101, ...; return the tree and the child."""
    flags = jnp.array([draft]), jnp.array([shares])
    tree, [node] = branch(tree, ints(parent), jnp.array([True]), *flags)
    for token in range(tokens):
        tree, _ = grow(tree, node[None], ints(100 + token))
    return tree, int(node)


def family():
    """Return a forest and its nodes: A of 6 tokens ─ B of 5 ┬ C of 2, and D of 1.

    C shares the pages of B. D is a draft.            └ D
    """
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    tree, a = add(tree, NO_NODE, 6)
    tree, b = add(tree, a, 5)
    tree, c = add(tree, b, 2, shares=True)
    tree, d = add(tree, b, 1, draft=True)
    return tree, (a, b, c, d)


def split(tree, *rows):
    """Split at (node, at); return the tree, what ends there, and the relabelling."""
    columns = np.array([*rows, *[(NODES, 0)] * (ROWS - len(rows))], np.int32).T
    tree, found, relabelling = compiled(relabel.split, counting.MAX_NODE_PAIRS)(
        tree, *columns
    )
    tree.check()
    return tree, found[: len(rows)].tolist(), relabelling


def collapse(tree, *nodes):
    mask = jnp.isin(jnp.arange(NODES), jnp.array(nodes, jnp.int32))
    tree, relabelling = compiled(relabel.collapse, counting.MAX_NODE_PAIRS)(tree, mask)
    tree.check()
    return tree, relabelling


def slots_of(tree, node):
    """Return the (position, page, slot) of a node's tokens in order."""
    pages, slots = np.nonzero(np.asarray(tree.slot_node) == node)
    position = np.asarray(tree.slot_position)[pages, slots]
    return sorted(zip(position.tolist(), pages.tolist(), slots.tolist(), strict=True))


@pytest.mark.usefixtures("either")
def test_a_split_puts_the_first_tokens_into_a_new_node_above():
    tree, (a, b, c, d) = family()
    after, [new], relabelling = split(tree, (b, 2))
    assert after.parent[ints(new, b, c, d)].tolist() == [a, new, b, b]
    assert after.start[ints(new, b, c)].tolist() == [6, 8, 11]
    assert after.count[ints(new, b, c)].tolist() == [2, 3, 2]
    assert slots_of(after, new) + slots_of(after, b) == slots_of(tree, b)
    assert after.first[ints(a, new, b)].tolist() == [0, 1, 2]
    assert after.end[ints(a, new, b)].tolist() == [5, 5, 5]
    # The number says who ends where rows are, and what hangs on it stays there.
    assert after.trunk[ints(new, b, d)].tolist() == [new, b, b]
    # The pages are those of the first part; the others share them.
    assert after.storage[ints(new, b, c, d)].tolist() == [new] * 4
    assert relabelling.origin[new] == b
    np.testing.assert_array_equal(relabelling.heir, np.arange(NODES))


@pytest.mark.usefixtures("either")
def test_a_node_is_split_in_several_places_at_once_in_any_order():
    tree, (a, b, *_) = family()
    after, found, relabelling = split(tree, (b, 4), (a, 1), (b, 1), (b, 4))
    third, alone, first, same = found
    assert same == third
    assert after.parent[ints(b, third, first, a)].tolist() == [third, first, a, alone]
    assert after.count[ints(first, third, b)].tolist() == [1, 3, 1]
    assert after.count[ints(alone, a)].tolist() == [1, 5]
    assert relabelling.origin[ints(first, third, alone)].tolist() == [b, b, a]
    once, [below] = split(tree, (b, 4))[:2]
    twice, [above] = split(once, (below, 1))[:2]
    for x, y in [(b, b), (third, below), (first, above)]:
        assert slots_of(after, x) == slots_of(twice, y)


def test_a_place_that_is_an_end_already_splits_nothing():
    tree, (a, b, *_) = family()
    after, found, relabelling = split(tree, (a, 6), (b, 0), (b, 6), (NO_NODE, 1))
    assert found == [a, NODES, NODES, NODES]
    assert_same(after, tree)
    np.testing.assert_array_equal(relabelling.origin, np.arange(NODES))


def test_a_split_that_does_not_fit_changes_only_the_overflow():
    tree, (a, b, *_) = family()
    for _ in range(NODES - 5):
        tree, _ = add(tree, a, 0)
    after, found, relabelling = split(tree, (a, 2), (b, 3), (b, 5))
    assert found == [NODES, NODES, b]
    assert_same(after, replace(tree, overflow=ints(OUT_OF_NODES)[0]))
    np.testing.assert_array_equal(relabelling.origin, np.arange(NODES))
    assert NODES not in split(tree, (a, 2))[1]


def test_parts_of_a_draft_are_drafts_of_its_trunk():
    tree, (_, b, *_) = family()
    tree, e = add(tree, b, 3, draft=True)
    after, [new], _ = split(tree, (e, 1))
    assert after.is_draft[ints(new, e)].tolist() == [True, True]
    assert after.trunk[ints(new, e)].tolist() == [b, b]


@pytest.mark.usefixtures("either")
def test_a_chain_takes_the_number_of_its_last_node():
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    tree, a = add(tree, NO_NODE, 3)
    tree, b = add(tree, a, 2)
    tree, c = add(tree, b, 3, shares=True)
    tree, d = add(tree, c, 1)
    tree, e = add(tree, c, 1, shares=True)
    after, relabelling = collapse(tree, *range(NODES))
    assert np.flatnonzero(after.live).tolist() == sorted([c, d, e])
    assert after.parent[ints(c, d, e)].tolist() == [NO_NODE, c, c]
    assert (after.start[c], after.count[c]) == (0, 8)
    assert slots_of(after, c) == [
        *slots_of(tree, a),
        *slots_of(tree, b),
        *slots_of(tree, c),
    ]
    assert relabelling.follow(ints(a, b, c, d, NO_NODE, NODES)).tolist() == [
        *(c, c, c, d, NO_NODE, NODES)
    ]
    # Pages of A and of B have room, which C and what shares with it fill now.
    assert after.num_free_pages == tree.num_free_pages
    grown, slots = grow(after, ints(e, e, e), ints(1, 2, 3))
    grown.check()
    assert grown.num_free_pages == after.num_free_pages
    assert set(slots.page.tolist()) <= {page for _, page, _ in slots_of(after, c)}


def test_only_masked_nodes_take_over_their_parent():
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    tree, a = add(tree, NO_NODE, 3)
    tree, b = add(tree, a, 2)
    tree, c = add(tree, b, 3)
    tree, d = add(tree, c, 1)
    after, relabelling = collapse(tree, b, d)
    assert np.flatnonzero(after.live).tolist() == sorted([b, d])
    assert relabelling.heir[ints(a, b, c, d)].tolist() == [b, b, d, d]
    assert after.count[ints(b, d)].tolist() == [5, 4]
    assert_same(collapse(tree)[0], tree)


def test_siblings_and_drafts_are_left_alone():
    tree, (a, b, c, d) = family()
    after, _ = collapse(tree, *range(NODES))
    assert np.flatnonzero(after.live).tolist() == sorted([b, c, d])
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    tree, a = add(tree, NO_NODE, 1)
    tree, b = add(tree, a, 1, draft=True)
    tree, _ = add(tree, b, 1, draft=True)
    tree, _ = add(tree, b, 1)
    assert_same(collapse(tree, *range(NODES))[0], tree)


@pytest.mark.usefixtures("either")
def test_collapse_undoes_split():
    tree, (a, b, *_) = family()
    after, found, _ = split(tree, (a, 2), (a, 5), (b, 1))
    again, _ = collapse(after, a, b, *found)
    # A is an only child's parent as well, so it is joined to nothing but its parts.
    expected, _ = collapse(tree, b)
    for node in np.flatnonzero(expected.live).tolist():
        assert slots_of(again, node) == slots_of(expected, node)
    names = "parent", "first", "end", "count", "start", "trunk", "storage", "page_owner"
    for name in names:
        np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))


def test_arguments_of_other_shapes_are_refused():
    tree, _ = family()
    with pytest.raises(DeftError, match="at must be"):
        relabel.split(tree, ints(1, 2), ints(1))
    with pytest.raises(DeftError, match="mask must be"):
        relabel.collapse(tree, jnp.zeros(3, bool))
