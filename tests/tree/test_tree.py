import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deft_jax.tree import branching, pruning
from deft_jax.tree.appending import append
from deft_jax.tree.state import (
    NO_NODE,
    OUT_OF_NODES,
    OUT_OF_PAGES,
    Tree,
    choose,
    replace,
)
from tests.support.tree_invariants import assert_same

NODES, PAGES, PAGE_SIZE = 8, 6, 4

jitted_branch = jax.jit(branching.branch)
jitted_append = jax.jit(append)
prune = jax.jit(pruning.prune)
accept = jax.jit(pruning.accept)


def ints(values):
    return jnp.array(values, jnp.int32)


def empty():
    return Tree.create(NODES, PAGES, PAGE_SIZE)


def branch(tree, parents, draft=False):
    """Add a child per parent; return the tree and the children."""
    rows = ints([*parents, *[0] * (4 - len(parents))])
    mask = jnp.arange(4) < len(parents)
    tree, nodes = jitted_branch(tree, rows, mask, jnp.full(4, draft))
    return tree, nodes[: len(parents)].tolist()


def grow(tree, *nodes):
    """Append tokens 10, 11, ... to the nodes."""
    rows = ints([*nodes, *[tree.num_nodes] * (8 - len(nodes))])
    tree, _ = jitted_append(tree, rows, jnp.arange(10, 18, dtype=jnp.int32))
    return tree


def intervals(tree, nodes):
    """First and end of each node."""
    return [(int(tree.first[node]), int(tree.end[node])) for node in nodes]


def mask_of(*nodes):
    """Return [N] bool, true for the nodes."""
    return jnp.zeros(NODES, bool).at[ints(nodes)].set(True)


def paper_tree():
    r"""Return the tree that the grouping is explained with, and its nodes.

    A(3 tokens) - B(1)
                \ C(1) - D(1)
    """
    tree, [a] = branch(empty(), [NO_NODE])
    tree = grow(tree, a, a, a)
    tree, [b, c] = branch(tree, [a, a])
    tree = grow(tree, b, c)
    tree, [d] = branch(tree, [c])
    return grow(tree, d), (a, b, c, d)


def test_depth_first_intervals_nest_as_the_subtrees_do():
    tree, nodes = paper_tree()
    assert intervals(tree, nodes) == [(0, 4), (1, 2), (2, 4), (3, 4)]
    a, _, c, _ = nodes
    assert [int(tree.parent[node]) for node in nodes] == [NO_NODE, a, a, c]
    assert [int(tree.start[node]) for node in nodes] == [0, 3, 3, 4]
    assert [int(tree.count[node]) for node in nodes] == [3, 1, 1, 1]


def test_a_later_child_shifts_the_numbers_of_what_follows():
    tree, (a, b, c, d) = paper_tree()
    tree, [e, f] = branch(tree, [b, NO_NODE])
    # F is a new tree of the forest and comes first; E goes below B.
    order = [f, a, b, e, c, d]
    expected = [(0, 1), (1, 6), (2, 4), (3, 4), (4, 6), (5, 6)]
    assert intervals(tree, order) == expected


def test_siblings_made_in_one_call_are_in_row_order():
    tree, roots = branch(empty(), [NO_NODE] * 3)
    assert intervals(tree, roots) == [(0, 1), (1, 2), (2, 3)]
    tree, children = branch(tree, [roots[1], roots[0], roots[1]])
    assert intervals(tree, roots) == [(0, 2), (2, 5), (5, 6)]
    assert intervals(tree, children) == [(3, 4), (1, 2), (4, 5)]


def test_rows_that_take_no_part_may_hold_anything():
    tree, (a, *_) = paper_tree()
    parent, mask = ints([99, a, NO_NODE, -7]), jnp.array([False, True, False, False])
    expected, [child] = branch(tree, [a])
    actual, nodes = jitted_branch(tree, parent, mask, jnp.ones(4, bool))
    assert nodes.tolist() == [NODES, child, NODES, NODES]
    storage = expected.storage.at[child].set(a)
    assert_same(actual, replace(expected, storage=storage, trunk=storage))


def test_a_branch_that_does_not_fit_changes_only_the_overflow():
    tree, (a, *_) = paper_tree()
    tree, _ = branch(tree, [a])
    full, nodes = branch(tree, [a, a, NO_NODE, a])
    assert nodes == [NODES] * 4
    assert_same(full, replace(tree, overflow=ints(OUT_OF_NODES)))
    exact, nodes = branch(full, [a, a, NO_NODE])
    assert exact.num_free_nodes == 0 and NODES not in nodes
    assert exact.overflow == OUT_OF_NODES


def test_without_the_draft_argument_no_child_is_a_draft():
    tree, (a, *_) = paper_tree()
    expected, nodes = branch(tree, [a, NO_NODE])
    rows = ints([a, NO_NODE])
    actual, made = jitted_branch(tree, rows, jnp.ones(2, bool))
    assert made.tolist() == nodes
    assert_same(actual, expected)


def test_a_draft_is_stored_with_its_nearest_ancestor_that_is_none():
    tree, [root] = branch(empty(), [NO_NODE], draft=True)
    tree, [child] = branch(tree, [root], draft=True)
    tree, [grandchild] = branch(tree, [child], draft=True)
    tree, [own] = branch(tree, [grandchild])
    nodes = [root, child, grandchild, own]
    assert [int(tree.storage[x]) for x in nodes] == [root, root, root, own]
    assert [int(tree.trunk[x]) for x in nodes] == [root, root, root, own]
    assert tree.is_draft.tolist() == mask_of(child, grandchild).tolist()


def test_prune_frees_a_subtree_and_keeps_the_rest():
    tree, (a, b, c, d) = paper_tree()
    pruned = prune(tree, mask_of(c))
    assert pruned.live.tolist() == mask_of(a, b).tolist()
    assert intervals(pruned, [a, b]) == [(0, 2), (1, 2)]
    assert intervals(pruned, [c, d]) == [(NODES, NODES)] * 2
    assert pruned.num_free_nodes == NODES - 2
    assert pruned.num_free_pages == PAGES - 2


def test_prune_frees_ancestors_left_without_a_leaf():
    tree, (a, b, *_, d) = paper_tree()
    assert prune(tree, mask_of(d)).live.tolist() == mask_of(a, b).tolist()


def test_prune_keeps_a_node_and_its_ancestors_without_a_leaf():
    tree, (a, b, c, d) = paper_tree()
    pruned = prune(tree, mask_of(b, d), mask_of(c))
    assert pruned.live.tolist() == mask_of(a, c).tolist()
    assert intervals(pruned, [a, c]) == [(0, 2), (1, 2)]


def test_prune_keeps_nothing_of_a_doomed_subtree():
    tree, (a, b, c, d) = paper_tree()
    pruned = prune(tree, mask_of(c), mask_of(c, d))
    assert pruned.live.tolist() == mask_of(a, b).tolist()


def test_prune_of_every_leaf_frees_the_whole_request_and_no_other():
    tree, (_, b, _, d) = paper_tree()
    tree, [other] = branch(tree, [NO_NODE])
    tree = prune(grow(tree, other), mask_of(b, d))
    assert tree.live.tolist() == mask_of(other).tolist()
    assert tree.num_free_pages == PAGES - 1


def test_prune_of_free_nodes_and_of_none_changes_nothing():
    tree, nodes = paper_tree()
    free = [node for node in range(NODES) if node not in nodes]
    assert_same(prune(tree, jnp.zeros(NODES, bool)), tree)
    assert_same(prune(tree, mask_of(*free)), tree)


def test_freed_nodes_are_used_again():
    tree, (a, b, c, d) = paper_tree()
    tree = prune(tree, mask_of(c))
    tree, one = branch(tree, [a] * 4)
    tree, two = branch(tree, [a, a])
    assert sorted([a, b, *one, *two]) == list(range(NODES))


def draft_tree():
    r"""Return a trunk of two tokens with drafts of one token each, and its nodes.

    T(2) - X - Y - Z
         \ W
    """
    tree, [trunk] = branch(empty(), [NO_NODE])
    tree = grow(tree, trunk, trunk)
    tree, [x, w] = branch(tree, [trunk, trunk], draft=True)
    tree = grow(tree, x, w)
    tree, [y] = branch(tree, [x], draft=True)
    tree = grow(tree, y)
    tree, [z] = branch(tree, [y], draft=True)
    return grow(tree, z), (trunk, x, w, y, z)


def test_drafts_share_the_pages_of_their_trunk():
    tree, (trunk, x, w, y, z) = draft_tree()
    free = NODES
    nodes = [[trunk, trunk, x, w], [y, z, free, free]]
    np.testing.assert_array_equal(tree.slot_node[:2], nodes)
    np.testing.assert_array_equal(tree.slot_position[:2, :2], [[0, 1], [3, 4]])
    np.testing.assert_array_equal(tree.page_owner[:2], [trunk, trunk])


def test_accept_gives_the_path_to_the_trunk_and_drops_the_rest():
    tree, (trunk, *_, y, _) = draft_tree()
    tree = accept(tree, ints([NO_NODE, y]))
    # X and Y are the trunk's own tokens now, where they were; W and Z left holes.
    free = NODES
    nodes = [[trunk, trunk, trunk, free], [trunk, free, free, free]]
    np.testing.assert_array_equal(tree.slot_node[:2], nodes)
    assert tree.count[trunk] == 4
    assert tree.live.tolist() == mask_of(trunk).tolist()
    assert intervals(tree, [trunk]) == [(0, 1)]


def test_the_next_tokens_fill_the_holes_that_accept_left():
    tree, (trunk, *_, y, _) = draft_tree()
    tree = grow(accept(tree, ints([NO_NODE, y])), trunk, trunk)
    np.testing.assert_array_equal(
        tree.slot_position[:2, :4], [[0, 1, 2, 4], [3, 5, 0, 0]]
    )
    assert tree.page_fill[:2].tolist() == [4, 2]
    assert tree.num_free_pages == PAGES - 2


def test_a_trunk_as_tip_accepts_none_and_keeps_its_other_children():
    tree, (trunk, *_) = draft_tree()
    tree, [child] = branch(tree, [trunk])
    tree = accept(tree, ints([trunk, NO_NODE]))
    assert tree.live.tolist() == mask_of(trunk, child).tolist()
    assert tree.count[trunk] == 2
    # Y and Z were alone in the second page.
    assert tree.num_free_pages == PAGES - 1


def test_children_of_the_tip_that_are_no_drafts_move_to_the_trunk():
    tree, (trunk, *_, z) = draft_tree()
    tree, [child] = branch(tree, [z])
    tree = accept(tree, ints([z, NO_NODE]))
    assert tree.parent[child] == trunk
    assert intervals(tree, [trunk, child]) == [(0, 2), (1, 2)]
    assert tree.start[child] == tree.count[trunk] == 5


@pytest.mark.parametrize("above", ["trunk", "draft"])
def test_children_above_the_tip_that_are_no_drafts_are_dropped(above):
    """They began where the trunk's tokens ended, which is not its end any more."""
    tree, (trunk, x, _, y, z) = draft_tree()
    tree, [overrun] = branch(tree, [trunk if above == "trunk" else x])
    tree = grow(tree, overrun)
    tree, [below, kept] = branch(tree, [overrun, y])
    tree = accept(tree, ints([y]))
    assert tree.live.tolist() == mask_of(trunk, kept).tolist()
    assert tree.start[kept] == tree.count[trunk] == 4
    tree.check()


def test_tips_of_several_trunks_are_accepted_at_once():
    tree, roots = branch(empty(), [NO_NODE, NO_NODE])
    tree, drafts = branch(tree, roots * 2, draft=True)
    tree = grow(tree, *drafts)
    tree = accept(tree, ints([drafts[3], drafts[0]]))
    assert tree.live.tolist() == mask_of(*roots).tolist()
    assert [int(tree.count[root]) for root in roots] == [1, 1]
    kept = np.sort(tree.slot_token[tree.slot_node < NODES])
    np.testing.assert_array_equal(kept, [10, 13])


@pytest.mark.parametrize("inner_first", [True, False])
def test_a_tip_below_a_rejected_draft_is_dropped_with_it(inner_first):
    tree, [outer] = branch(empty(), [NO_NODE])
    tree, [rejected] = branch(tree, [outer], draft=True)
    tree, [inner] = branch(tree, [rejected])
    tree, [draft] = branch(tree, [inner], draft=True)
    tree = grow(tree, outer, rejected, inner, draft)
    tips = [draft, outer] if inner_first else [outer, draft]
    tree = accept(tree, ints(tips))
    assert tree.live.tolist() == mask_of(outer).tolist()
    assert tree.count[outer] == 1
    assert tree.num_free_pages == PAGES - 1


def test_operations_run_inside_a_loop_and_a_condition():
    """A loop adds a child and drops it again in every other round.

    In the end one page is taken by the root and one by each child that stays.
    """

    def goes_on(carry):
        tree, _, turn = carry
        return (tree.overflow == 0) & (turn < 100)

    def step(carry):
        tree, root, turn = carry
        tree, child = branching.branch(tree, root[None], jnp.ones(1, bool))
        tree, _ = append(tree, child, ints([7]))
        doomed = jnp.arange(NODES) == child
        even = turn % 2 == 0
        tree = lax.cond(even, lambda: pruning.prune(tree, doomed), lambda: tree)
        return tree, root, turn + 1

    @jax.jit
    def run(tree, root):
        carry = tree, root, jnp.int32(1)
        return lax.while_loop(goes_on, step, carry)

    tree, [root] = branch(empty(), [NO_NODE])
    tree, _, turn = run(grow(tree, root), ints(root))
    assert tree.overflow == OUT_OF_PAGES
    assert turn == 2 * (PAGES - 1) + 1
    assert intervals(tree, [root]) == [(0, PAGES)]


def test_a_new_tree_can_be_donated():
    drop = jax.jit(pruning.prune, donate_argnums=0)
    assert_same(drop(empty(), jnp.zeros(NODES, bool)), empty())


@pytest.mark.parametrize("name", ["num_nodes", "num_pages", "page_size"])
def test_a_capacity_below_1_is_refused(name):
    sizes = {"num_nodes": 2, "num_pages": 2, "page_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Tree.create(**sizes)


def test_a_choice_of_pytrees():
    chosen = choose(jnp.bool_(False), {"a": ints([1])}, {"a": ints([2])})
    np.testing.assert_array_equal(chosen["a"], [2])
