"""Numbers that are no live node make a row idle; arrays of a wrong kind are refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.tree import branching, pruning
from deft_jax.tree.appending import append
from deft_jax.tree.draft_levels import Growth, branch_rows
from deft_jax.tree.pruning import Staying, accept_and_prune
from deft_jax.tree.state import NO_NODE, Tree, replace
from tests.support.tree_invariants import assert_same

NODES, PAGES, PAGE_SIZE = 6, 5, 4
IDLE = [NO_NODE, -2, -NODES, NODES, NODES + 1, 2**31 - 1, -(2**31)]
DEAD = 2

branch = jax.jit(branching.branch)
grow = jax.jit(append)
prune = jax.jit(pruning.prune)
accept = jax.jit(pruning.accept)


def ints(*values):
    return np.array(values, np.int32)


@pytest.fixture(scope="module")
def forest():
    """Return a root of two tokens with a draft of one; node `DEAD` was pruned."""
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    tree, made = branch(tree, ints(*[NO_NODE] * 3), np.ones(3, bool))
    root, other, dead = made.tolist()
    assert dead == DEAD
    tree, _ = grow(tree, ints(root, root, other, dead), ints(1, 2, 3, 4))
    tree, made = branch(tree, ints(root), np.array([True]), np.array([True]))
    tree, _ = grow(tree, made, ints(5))
    tree = prune(tree, np.isin(np.arange(NODES), [dead, other]))
    tree.check()
    return tree, root, int(made[0])


@pytest.mark.parametrize("node", [*IDLE, DEAD])
def test_append_takes_no_page_for_what_is_no_node(forest, node):
    tree, root, _ = forest
    after, slots = grow(tree, ints(node, node), ints(7, 8))
    assert_same(after, tree)
    assert slots.node.tolist() == [NODES] * 2
    assert slots.page.tolist() == [PAGES] * 2
    assert slots.slot.tolist() == slots.position.tolist() == [0, 0]


def test_append_gives_live_rows_what_they_get_without_idle_ones(forest):
    tree, _, draft = forest
    mixed, slots = grow(tree, ints(DEAD, draft, NO_NODE, draft), ints(7, 8, 9, 10))
    alone, own = grow(tree, ints(draft, draft), ints(8, 10))
    assert_same(mixed, alone)
    assert slots.position[ints(1, 3)].tolist() == own.position.tolist()


@pytest.mark.parametrize("parent", [*IDLE[1:], DEAD])
@pytest.mark.parametrize("draft", [None, np.array([True])])
def test_branch_makes_no_child_of_what_is_no_node(forest, parent, draft):
    tree, *_ = forest
    after, made = branch(tree, ints(parent), np.array([True]), draft)
    assert_same(after, tree)
    assert made.tolist() == [NODES]


def test_branch_gives_live_rows_what_they_get_without_idle_ones(forest):
    tree, root, _ = forest
    mixed, made = branch(tree, ints(DEAD, root, NODES, NO_NODE), np.ones(4, bool))
    alone, own = branch(tree, ints(root, NO_NODE), np.ones(2, bool))
    assert_same(mixed, alone)
    assert made.tolist() == [NODES, int(own[0]), NODES, int(own[1])]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("branches", [False, True])
def test_rows_of_a_step_that_continue_no_node_are_idle(forest, depth, branches):
    tree, root, _ = forest
    last = NODES + 4  # a row that there is not
    source = jnp.asarray(ints(DEAD, root, NODES, last))
    growth = Growth(source, jnp.full(4, branches), jnp.zeros(4, bool))
    live = np.array([True, True, True, False])
    after, node, storage = jax.jit(branch_rows, static_argnums=3)(
        tree, growth, live, depth
    )
    assert node.tolist() == [NODES, int(node[1]), NODES, NODES]
    assert storage.tolist() == node.tolist()
    after.check()
    expected, own = branch(tree, ints(root), np.array([branches]))
    assert_same(after, expected)
    assert int(node[1]) == (int(own[0]) if branches else root)


@pytest.mark.parametrize("tip", [*IDLE, DEAD])
def test_accept_ignores_a_tip_that_is_no_node(forest, tip):
    tree, _, draft = forest
    assert_same(accept(tree, ints(tip)), tree)
    assert_same(accept(tree, ints(tip, draft)), accept(tree, ints(draft)))
    none = jnp.zeros(NODES, bool)
    tips, staying = jnp.asarray(ints(tip)), Staying(none)
    assert_same(accept_and_prune(tree, tips, none, staying), tree)


def test_of_several_tips_of_one_trunk_the_last_in_depth_first_order_counts(forest):
    tree, root, draft = forest
    tree, made = branch(tree, ints(draft), np.array([True]), np.array([True]))
    tree, _ = grow(tree, made, ints(6))
    longest = accept(tree, made)
    longest.check()
    assert int(longest.count[root]) == 4
    for tips in ([draft, made[0]], [made[0], root], [made[0], made[0], draft]):
        assert_same(accept(tree, ints(*tips)), longest)


@pytest.mark.parametrize("node", [DEAD, NODES - 1])
def test_prune_ignores_masks_of_nodes_that_are_not_live(forest, node):
    tree, *_ = forest
    mask = np.arange(NODES) == node
    assert not tree.live[node]
    assert_same(prune(tree, mask), tree)
    assert_same(prune(tree, np.zeros(NODES, bool), mask), tree)


def good(length):
    return jnp.zeros(length, jnp.int32)


MASK = np.zeros(NODES, bool)
ROWS = np.ones(2, bool)
WRONG = {
    "append float nodes": (append, [jnp.zeros(2), good(2)], "node must be [Q] int"),
    "append masks": (
        append,
        [ROWS, good(2)],
        "node must be [Q] integers, got [2] bool",
    ),
    "append one number": (append, [jnp.int32(0), good(1)], "integers, got [] int32"),
    "append None": (append, [None, good(1)], "node must be [Q] integers, got "),
    "append float tokens": (append, [good(2), jnp.zeros(2)], "token must be [2] int"),
    "append fewer tokens": (append, [good(3), good(2)], "[3] integers, got [2] int32"),
    "branch floats": (branching.branch, [jnp.zeros(2), ROWS], "parent must be [B]"),
    "branch ints": (branching.branch, [good(2), good(2)], "mask must be [2] bool"),
    "branch fewer": (branching.branch, [good(3), ROWS], "[3] bool, got [2] bool"),
    "branch draft": (branching.branch, [good(2), ROWS, good(2)], "draft must be [2]"),
    "prune nodes": (pruning.prune, [good(NODES)], "doomed must be [6] bool, got [6] i"),
    "prune rows": (pruning.prune, [ROWS], "doomed must be [6] bool, got [2] bool"),
    "prune keep": (pruning.prune, [MASK, ROWS], "keep must be [6] bool, got [2] bool"),
    "accept mask": (pruning.accept, [MASK], "tip must be [A] integers, got [6] bool"),
    "accept float": (
        pruning.accept,
        [jnp.ones(2)],
        "tip must be [A] integers, got [2]",
    ),
    "both": (
        accept_and_prune,
        [good(1), ROWS, Staying(jnp.asarray(MASK))],
        "doomed must be [6] bool",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("jit", [False, True])
def test_arrays_of_a_wrong_kind_or_length_are_refused(forest, name, jit):
    operation, arguments, message = WRONG[name]
    call = jax.jit(operation) if jit else operation
    with pytest.raises(DeftError, match=re.escape(message)) as caught:
        call(forest[0], *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_integers_of_any_width_are_taken(forest, dtype):
    tree, root, draft = forest
    after, made = branch(tree, np.array([draft], dtype), np.array([True]))
    expected, _ = branch(tree, ints(draft), np.array([True]))
    assert_same(after, expected)
    narrow, _ = grow(after, np.asarray(made, dtype), np.array([5], dtype))
    assert_same(narrow, grow(after, made, ints(5))[0])


@pytest.mark.parametrize("value", [2.5, "2", None, 0, -1])
def test_capacities_are_whole_numbers_from_1(value):
    with pytest.raises(DeftError, match="page_size must be "):
        Tree.create(2, 2, value)


def test_capacities_may_be_numpy_integers():
    sizes: list = [np.int64(2), np.int32(2), 2]
    assert_same(Tree.create(*sizes), Tree.create(2, 2, 2))


def test_an_idle_append_keeps_an_earlier_overflow(forest):
    tree = replace(forest[0], overflow=jnp.int32(2))
    assert_same(grow(tree, ints(NO_NODE), ints(1))[0], tree)
