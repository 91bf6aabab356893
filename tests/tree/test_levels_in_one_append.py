"""Nodes that are branched before their parents have tokens, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.tree import branching, pruning
from deft_jax.tree.appending import append
from deft_jax.tree.state import NO_NODE, OUT_OF_ORDER, OUT_OF_PAGES, Tree, replace
from tests.support.models.tree_logits import forest_logits
from tests.support.tiny_model import dense_logits, tiny_model
from tests.support.tree_invariants import assert_same

NODES, PAGES, PAGE_SIZE, ROWS = 12, 16, 4, 24

branch = jax.jit(branching.branch)
grow = jax.jit(append)
prune = jax.jit(pruning.prune)


def ints(*values):
    return np.array(values, np.int32)


def child(tree, parent, draft=False):
    """Add one child; return the tree and the child."""
    tree, made = branch(tree, ints(parent), np.array([True]), np.array([draft]))
    return tree, int(made[0])


def feed(tree, nodes, tokens=None):
    """Append a token to each node; return the tree and the rows' slots."""
    idle = ROWS - len(nodes)
    tokens = list(range(len(nodes))) if tokens is None else tokens
    rows, fed = ints(*nodes, *[NODES] * idle), ints(*tokens, *[0] * idle)
    tree, slots = grow(tree, rows, fed)
    return tree, jax.tree.map(lambda x: x[: len(nodes)].tolist(), slots)


def chain(*drafts):
    """Branch a root, a child of it, a child of that, ...; all are empty."""
    tree, nodes = Tree.create(NODES, PAGES, PAGE_SIZE), [NO_NODE]
    for draft in drafts:
        tree, node = child(tree, nodes[-1], draft)
        nodes.append(node)
    return tree, nodes[1:]


@pytest.mark.parametrize("draft", [False, True])
def test_tokens_of_all_levels_at_once_follow_each_other(draft):
    tree, (root, left, below) = chain(False, draft, draft)
    tree, right = child(tree, root, draft)
    tree, slots = feed(tree, [below, root, left, right, root, below])
    assert slots.position == [3, 0, 2, 2, 1, 4]
    assert [int(tree.start[x]) for x in (root, left, below, right)] == [0, 2, 3, 2]
    tree.check()


def test_a_node_may_grow_again_while_all_below_are_empty():
    tree, (root, left, below) = chain(False, False, False)
    for _ in range(3):
        tree, _ = feed(tree, [root])
    tree, slots = feed(tree, [left, below])
    assert slots.position == [3, 4]
    assert int(tree.start[below]) == 4
    tree.check()


@pytest.mark.parametrize("draft", [False, True])
def test_a_node_with_tokens_below_it_does_not_grow(draft):
    tree, (root, left, below) = chain(False, False, draft)
    tree, _ = feed(tree, [root, below])
    for rows in ([root], [left], [below, left], [below, below, root]):
        full, slots = feed(tree, rows)
        assert_same(full, replace(tree, overflow=jnp.int32(OUT_OF_ORDER)))
        assert slots.node == [NODES] * len(rows)
        assert slots.page == [PAGES] * len(rows)
    tree, slots = feed(tree, [below])
    assert slots.position == [2]
    tree = prune(tree, np.arange(NODES) == below, np.arange(NODES) == left)
    tree, slots = feed(tree, [left])
    assert slots.position == [1]
    tree.check()


def test_both_reasons_to_refuse_are_said():
    tree, (root, left) = chain(False, False)
    tree, _ = feed(tree, [left])
    tree = replace(tree, free_pages=tree.free_pages, num_free_pages=jnp.int32(0))
    full, _ = feed(tree, [root])
    assert full.overflow == OUT_OF_ORDER | OUT_OF_PAGES


@st.composite
def growths(draw):
    """Nodes as (parent index, draft, tokens), parents first, and an order of rows."""
    nodes = []
    for index in range(draw(st.integers(1, 8))):
        parent = draw(st.integers(-1, index - 1))
        nodes.append((parent, draw(st.booleans()), draw(st.integers(0, 3))))
    rows = [index for index, (_, _, tokens) in enumerate(nodes) for _ in range(tokens)]
    return nodes, draw(st.permutations(rows))


@given(growths())
def test_one_append_gives_what_one_for_each_level_gives(growth):
    nodes, order = growth
    fed = {index: [100 * index + k for k in range(nodes[index][2])] for index in order}
    late = Tree.create(NODES, PAGES, PAGE_SIZE)
    early, late_of, early_of = late, [], []
    for index, (parent, draft, _) in enumerate(nodes):
        late, made = child(late, late_of[parent] if parent >= 0 else NO_NODE, draft)
        late_of.append(made)
        early, made = child(early, early_of[parent] if parent >= 0 else NO_NODE, draft)
        early_of.append(made)
        early, _ = feed(early, [made] * nodes[index][2], fed.get(index, []))
    left = {index: list(tokens) for index, tokens in fed.items()}
    tokens = [left[index].pop(0) for index in order]
    late, slots = feed(late, [late_of[index] for index in order], tokens)
    late.check()
    for name in ("parent", "first", "end", "count", "start", "storage"):
        np.testing.assert_array_equal(getattr(late, name), getattr(early, name))
    assert late_of == early_of
    assert held(late) == held(early)
    assert slots.node == [late_of[index] for index in order]


def held(tree):
    """Return node, position and token of every slot that is in use, sorted."""
    used = np.asarray(tree.slot_node) < NODES
    arrays = tree.slot_node, tree.slot_position, tree.slot_token
    return sorted(zip(*(np.asarray(x)[used].tolist() for x in arrays), strict=True))


def test_logits_are_those_of_sequences():
    """A forest whose levels are all branched first and fed by one append."""
    model = tiny_model()
    paths = [[9, 20, 31, 42, 53], [9, 20, 31, 64], [9, 20, 75]]
    parents = [NO_NODE, 0, 1, 1, 0]
    tokens = [[9, 20], [31], [42, 53], [64], [75]]
    actual = forest_logits(model, parents, tokens, page_size=PAGE_SIZE)
    ends = [(2, 1), (3, 0), (4, 0)]
    for path, (node, index) in zip(paths, ends, strict=True):
        expected = dense_logits(model, jnp.array(path))[-1]
        error = np.linalg.norm(actual[node][index] - expected)
        assert error < 1e-4 * np.linalg.norm(expected)
