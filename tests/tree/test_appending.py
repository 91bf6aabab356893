import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deft_jax.tree import branching, pruning
from deft_jax.tree.appending import append, append_at_starts
from deft_jax.tree.state import NO_NODE, OUT_OF_PAGES, Tree, replace
from tests.support.tree_invariants import assert_same

NODES, PAGES, ROWS = 6, 5, 12

branch = jax.jit(branching.branch)
prune = jax.jit(pruning.prune)
accept = jax.jit(pruning.accept)
jitted = jax.jit(append)


def ints(values):
    return jnp.array(values, jnp.int32)


def children(tree, *parents, draft=False):
    """Add a child per parent; return the tree and the children."""
    rows = ints([*parents, *[0] * (3 - len(parents))])
    mask = jnp.arange(3) < len(parents)
    tree, nodes = branch(tree, rows, mask, jnp.full(3, draft))
    return tree, nodes[: len(parents)].tolist()


def roots(count, page_size=4):
    """Return a new forest of empty roots, and the roots."""
    tree = Tree.create(NODES, PAGES, page_size)
    return children(tree, *[NO_NODE] * count)


def grow(tree, nodes):
    """Append one token to each node; return the tree and the rows' slots."""
    rows = ints([*nodes, *[NODES] * (ROWS - len(nodes))])
    tree, slots = jitted(tree, rows, jnp.arange(100, 100 + ROWS, dtype=jnp.int32))
    return tree, jax.tree.map(lambda x: x[: len(nodes)].tolist(), slots)


def test_tokens_fill_a_page_slot_by_slot():
    tree, [node] = roots(1)
    tree, slots = grow(tree, [node] * 3)
    assert slots.node == [node] * 3
    assert len(set(slots.page)) == 1
    assert slots.slot == slots.position == [0, 1, 2]
    page = slots.page[0]
    np.testing.assert_array_equal(tree.slot_token[page, :3], [100, 101, 102])
    np.testing.assert_array_equal(tree.slot_node[page], [node] * 3 + [NODES])
    np.testing.assert_array_equal(tree.slot_position[page, :3], [0, 1, 2])
    assert tree.count[node] == 3


def test_a_full_page_is_followed_by_a_fresh_one():
    tree, [node] = roots(1)
    tree, before = grow(tree, [node] * 3)
    tree, after = grow(tree, [node] * 6)
    first, second, third = before.page[0], after.page[1], after.page[5]
    assert len({first, second, third}) == 3
    assert after.page == [first] + [second] * 4 + [third]
    assert after.slot == [3, 0, 1, 2, 3, 0]
    assert after.position == [3, 4, 5, 6, 7, 8]


def test_a_page_filled_exactly_opens_no_other():
    tree, [node] = roots(1)
    tree, _ = grow(tree, [node] * 4)
    assert tree.num_free_pages == PAGES - 1
    tree, _ = grow(tree, [node] * 4)
    assert tree.num_free_pages == PAGES - 2


def test_pages_of_one_slot():
    tree, [a, b] = roots(2, page_size=1)
    tree, slots = grow(tree, [a, b, a])
    assert len(set(slots.page)) == 3
    assert slots.slot == [0, 0, 0] and slots.position == [0, 0, 1]
    np.testing.assert_array_equal(tree.page_owner[ints(slots.page)], [a, b, a])


def test_rows_of_several_nodes_and_idle_rows_may_mix():
    tree, [a, b] = roots(2)
    idle = NODES
    tree, slots = grow(tree, [a, idle, b, a, idle, b, b, a, a, a])
    assert slots.page[1] == slots.page[4] == PAGES
    assert slots.slot[1] == slots.slot[4] == 0
    assert [slots.position[row] for row in (0, 3, 7, 8, 9)] == [0, 1, 2, 3, 4]
    assert [slots.slot[row] for row in (2, 5, 6)] == [0, 1, 2]
    # Five tokens of A take two pages, three of B one.
    assert tree.num_free_pages == PAGES - 3
    owner = tree.page_owner[ints([slots.page[row] for row in (0, 9, 2)])]
    np.testing.assert_array_equal(owner, [a, a, b])


def test_positions_go_on_where_the_parent_ended():
    tree, [root] = roots(1)
    tree, _ = grow(tree, [root] * 5)
    tree, [left, right] = children(tree, root, root)
    tree, slots = grow(tree, [left, right, left])
    assert slots.position == [5, 5, 6]
    # A child never writes into its parent's last page.
    assert tree.num_free_pages == PAGES - 4


def test_idle_rows_alone_change_nothing():
    tree, _ = roots(2)
    after, slots = grow(tree, [NODES] * ROWS)
    assert_same(after, tree)
    assert slots.page == [PAGES] * ROWS


def test_an_append_that_does_not_fit_changes_only_the_overflow():
    tree, [a, b] = roots(2)
    tree, _ = grow(tree, [a] * 10)
    tree, _ = grow(tree, [b] * 3)
    # One page is free and B has one slot left: five more tokens fit, six do not.
    full, slots = grow(tree, [b] * 6)
    assert_same(full, replace(tree, overflow=ints(OUT_OF_PAGES)))
    assert slots.node == [NODES] * 6 and slots.page == [PAGES] * 6
    assert slots.slot == slots.position == [0] * 6
    tree, slots = grow(tree, [b] * 5)
    assert tree.num_free_pages == 0 and tree.overflow == 0
    assert slots.position == [3, 4, 5, 6, 7]


def test_a_refused_append_takes_no_part_of_the_rows():
    tree, [a, b] = roots(2, page_size=1)
    full, slots = grow(tree, [a, b, a, b, a, b])
    assert_same(full, replace(tree, overflow=ints(OUT_OF_PAGES)))
    assert slots.page == [PAGES] * 6


def test_tokens_of_drafts_lie_in_the_pages_of_their_trunk():
    tree, [trunk] = roots(1)
    tree, _ = grow(tree, [trunk] * 2)
    tree, [left, right] = children(tree, trunk, trunk, draft=True)
    tree, slots = grow(tree, [left, right, right])
    # The page of the trunk has room for one of each; the third opens its next page.
    first, second = slots.page[0], slots.page[2]
    assert slots.page == [first, first, second]
    assert slots.slot == [2, 3, 0]
    assert slots.position == [2, 2, 3]
    np.testing.assert_array_equal(tree.page_owner[ints([first, second])], [trunk] * 2)


def speculated(tip):
    """Return a trunk T whose drafts, of one token each, were accepted down to a tip.

    slots before   T T A B   C D . .     drafts   A - C, B - D

    Args:
        tip: letter of a node; "T" accepts no draft.

    Returns:
        The tree, the trunk and the two pages.
    """
    tree, [trunk] = roots(1)
    tree, first = grow(tree, [trunk] * 2)
    tree, [a, b] = children(tree, trunk, trunk, draft=True)
    tree, _ = grow(tree, [a, b])
    tree, [c, d] = children(tree, a, b, draft=True)
    tree, second = grow(tree, [c, d])
    tip = {"T": trunk, "A": a, "B": b, "C": c, "D": d}[tip]
    return accept(tree, ints([tip])), trunk, [first.page[0], second.page[0]]


@pytest.mark.parametrize(
    ("tip", "holes"),
    [
        ("C", [(0, 3), (1, 1), (1, 2), (1, 3)]),
        ("D", [(0, 2), (1, 0), (1, 2), (1, 3)]),
    ],
)
def test_slots_of_rejected_drafts_are_filled_before_a_page_is_opened(tip, holes):
    tree, trunk, pages = speculated(tip)
    tree, slots = grow(tree, [trunk] * 4)
    found = [(pages.index(p), s) for p, s in zip(slots.page, slots.slot, strict=True)]
    assert sorted(found) == holes
    assert slots.position == [4, 5, 6, 7]
    assert tree.num_free_pages == PAGES - 2


@pytest.mark.parametrize(("tip", "hole"), [("T", 2), ("A", 3), ("B", 2)])
def test_a_page_of_rejected_drafts_alone_is_free_again(tip, hole):
    tree, trunk, pages = speculated(tip)
    assert tree.num_free_pages == PAGES - 1
    tree, slots = grow(tree, [trunk])
    assert (slots.page, slots.slot) == ([pages[0]], [hole])


def test_pruned_drafts_leave_holes_for_their_trunk():
    tree, [trunk] = roots(1)
    tree, [a, b] = children(tree, trunk, trunk, draft=True)
    tree, _ = grow(tree, [a, b, b])
    tree, slots = grow(prune(tree, jnp.arange(NODES) == a), [b, b])
    assert slots.slot == [0, 3]
    assert tree.num_free_pages == PAGES - 1


def test_append_runs_inside_a_loop():
    tree, [a, b] = roots(2)

    def step(_, tree):
        return append(tree, ints([a, b, a]), ints([1, 2, 3]))[0]

    looped = jax.jit(lambda tree: lax.fori_loop(0, 4, step, tree))(tree)
    for _ in range(4):
        tree, _ = jitted(tree, ints([a, b, a]), ints([1, 2, 3]))
    assert_same(looped, tree)
    assert tree.num_free_pages == PAGES - 3


def test_tokens_of_one_storage_may_lie_in_depth_first_order():
    """Rows 0 to 4 are of B, A, B, C and A, whose order in the forest is A B C."""
    tree, [root] = roots(1)
    rows, shares = ints([root] * 3), jnp.ones(3, bool)
    tree, nodes = branch(tree, rows, shares, jnp.zeros(3, bool), shares)
    a, b, c = nodes.tolist()
    node = ints([b, a, b, c, a, NODES])
    tree, slots = append_at_starts(tree, node, jnp.arange(6), depth_first=True)
    tree.check()
    place = [page * 4 + slot for page, slot in zip(slots.page, slots.slot, strict=True)]
    in_order = [int(place[row]) for row in (1, 4, 0, 2)]
    assert in_order == [int(min(place[:3])) + each for each in range(4)]
    assert int(slots.slot[3]) == 0
    assert slots.position.tolist() == [0, 0, 1, 0, 1, 0]
