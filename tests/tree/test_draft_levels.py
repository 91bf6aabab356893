"""Rows that continue rows of the same plan, placed at once and level by level."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.tree import branching
from deft_jax.tree.appending import append, append_at_starts
from deft_jax.tree.draft_levels import Growth, branch_rows
from deft_jax.tree.state import NO_NODE, OUT_OF_NODES, Tree, replace
from tests.support.tree_invariants import assert_same

NODES, PAGES, PAGE_SIZE, ROWS, DEPTH = 20, 12, 4, 8, 4

branch = jax.jit(branching.branch)
grow = jax.jit(append)
place = partial(jax.jit, static_argnums=3)(branch_rows)


def ints(values):
    return np.array(values, np.int32)


def place_by_levels(tree: Tree, source, live, branches, draft, depth: int):
    """Do what `branch_rows` does: branch from what has a node, again and again.

    The tokens of a level count while the next one branches.
    """
    node = np.full(ROWS, NODES, np.int32)
    for _ in range(depth):
        row = np.clip(source - NODES, 0, ROWS - 1)
        above = np.where(source < NODES, source, node[row])
        ready = live & (node == NODES) & (above >= 0) & (above < NODES)
        tree, child = branch(tree, above, ready & branches, draft)
        node = np.where(ready, np.where(branches, child, above), node)
        counted = np.where(ready, node, NODES)
        tree = replace(tree, count=tree.count.at[counted].add(1, mode="drop"))
    return replace(tree, count=tree.count.at[node].add(-1, mode="drop")), node


@st.composite
def forests(draw) -> Tree:
    """Draw a few prompts and what was branched from them, drafts among it."""
    tree, nodes = Tree.create(NODES, PAGES, PAGE_SIZE), []
    for _ in range(draw(st.integers(1, 3))):
        parent = st.sampled_from([NO_NODE, *nodes])
        parents = draw(st.lists(parent, min_size=1, max_size=4))
        rows = ints([*parents, *[NO_NODE] * (ROWS - len(parents))])
        mask = np.arange(ROWS) < len(parents)
        draft = draw(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
        tree, made = branch(tree, rows, mask, np.array(draft))
        tree, _ = grow(tree, made, np.arange(ROWS, dtype=np.int32))
        nodes += made[: len(parents)].tolist()
    return tree


@st.composite
def plan_rows(draw, tree: Tree):
    """Rows that continue live nodes, rows or nothing, in any order."""
    nodes = np.flatnonzero(tree.live).tolist()
    rows = st.integers(0, ROWS - 1).map(lambda row: NODES + row)
    above = st.one_of(st.sampled_from(nodes), rows, rows)
    lists = partial(st.lists, min_size=ROWS, max_size=ROWS)
    source = ints(draw(lists(above | st.just(NO_NODE))))
    often = st.sampled_from([True, True, True, False])
    live, branches, draft = (np.array(draw(lists(often))) for _ in range(3))
    return source, live & (source >= 0), branches, draft


@given(st.data())
def test_all_levels_at_once_are_as_one_by_one(data):
    tree = data.draw(forests())
    depth = data.draw(st.sampled_from([1, 2, DEPTH]))
    source, live, branches, draft = data.draw(plan_rows(tree))
    plan = Growth(source, branches, draft)
    actual, node, storage = place(tree, plan, live, depth)
    expected, nodes = place_by_levels(tree, source, live, branches, draft, depth)
    if expected.overflow:
        assert_same(actual, replace(tree, overflow=jnp.int32(OUT_OF_NODES)))
        assert np.all(node[branches] == NODES)
        return
    assert_same(actual, expected)
    np.testing.assert_array_equal(node, nodes)
    owners = np.append(expected.storage, NODES)[nodes]
    np.testing.assert_array_equal(storage, owners)


@pytest.mark.parametrize("free", [ROWS - 1, ROWS])
def test_nodes_for_all_rows_or_none(free):
    """A chain of drafts below a trunk that is new, too."""
    tree, [root] = branch(
        Tree.create(NODES, PAGES, PAGE_SIZE), ints([NO_NODE]), np.array([True])
    )
    tree = replace(tree, num_free_nodes=jnp.int32(free))
    source = ints([int(root), *range(NODES, NODES + ROWS - 1)])
    everywhere = jnp.ones(ROWS, bool)
    plan = Growth(jnp.asarray(source), everywhere, jnp.arange(ROWS) > 0)
    grown, node, storage = place(tree, plan, everywhere, ROWS)
    if free < ROWS:
        assert_same(grown, replace(tree, overflow=jnp.int32(OUT_OF_NODES)))
        assert node.tolist() == storage.tolist() == [NODES] * ROWS
    else:
        assert len(set(node.tolist())) == ROWS
        assert grown.parent[node].tolist() == [int(root), *node.tolist()[:-1]]
        assert grown.start[node].tolist() == list(range(ROWS))
        assert grown.first[node].tolist() == list(range(1, ROWS + 1))
        assert storage.tolist() == [int(node[0])] * ROWS


def test_the_example_of_the_module():
    tree, [root, *_] = branch(
        Tree.create(10, PAGES, PAGE_SIZE), ints([NO_NODE, 0]), np.array([True, False])
    )
    tree, _ = grow(tree, ints([root] * 3), ints([1, 2, 3]))
    source = jnp.array([0, 10, 10, 11])
    growth = Growth(source, jnp.ones(4, bool), jnp.arange(4) > 0)
    grown, node, storage = place(tree, growth, np.ones(4, bool), 3)
    assert grown.first[node].tolist() == [1, 2, 4, 3]
    assert (grown.end - grown.first)[node].tolist() == [4, 2, 1, 1]
    assert grown.start[node].tolist() == [3, 4, 4, 5]
    assert storage.tolist() == [int(node[0])] * 4
    grown, slots = jax.jit(append_at_starts)(grown, node, ints([4, 5, 6, 7]))
    assert slots.position.tolist() == [3, 4, 4, 5]
    grown.check()
