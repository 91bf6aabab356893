"""Keys of nodes: what a branch draws depends on its place in the tree alone."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from deft_jax.runtime.branch_keys import BranchKeys
from deft_jax.sampling.noise import ROOT_KEY, child_key
from deft_jax.strategies.protocol import NO_CHILD, Plan
from deft_jax.tree.relabel import Relabelling
from deft_jax.tree.state import NO_NODE

NODES = 8


def plan(source, branch, draft=None, child=None) -> Plan:
    """Return a plan of which only the growth matters."""
    fields: dict[str, Any] = dict.fromkeys(x.name for x in dataclasses.fields(Plan))
    draft = np.zeros(len(source), bool) if draft is None else draft
    child = np.full(len(source), NO_CHILD) if child is None else child
    growth = {"source": source, "branch": branch, "draft": draft, "child": child}
    return Plan(**fields | {name: jnp.asarray(x) for name, x in growth.items()})


def key(*numbers: int) -> int:
    """Return the key at the end of a way of child numbers from a root."""
    at = jnp.uint32(ROOT_KEY)
    for number in numbers:
        at = child_key(at, jnp.int32(number))
    return int(at)


def start() -> BranchKeys:
    keys = BranchKeys.create(NODES)
    root_key = jnp.full(2, ROOT_KEY, jnp.uint32)
    return keys.with_roots(jnp.array([3, NODES], jnp.int32), root_key)


def grown(keys, node, *args, depth=1, **kwargs) -> BranchKeys:
    return keys.grown(plan(*args, **kwargs), jnp.array(node, jnp.int32), depth)


def test_children_are_numbered_in_the_order_of_the_rows_and_go_on_later():
    keys = grown(start(), [5, NODES, 1, 2], [3, NO_NODE, 3, 3], [True] * 4)
    assert [int(keys.key[node]) for node in (5, 1, 2)] == [key(0), key(1), key(2)]
    keys = grown(keys, [6, 5, 0, NODES], [3, 5, 1, NO_NODE], [True, False, True, True])
    assert int(keys.key[6]) == key(3)
    assert int(keys.key[0]) == key(1, 0)
    assert int(keys.key[5]) == key(0)


def test_a_plan_may_give_the_numbers():
    child = [NO_CHILD, 4, 0, NO_CHILD]
    keys = grown(start(), [5, 6, 1, 2], [3] * 4, [True] * 4, child=child)
    found = [int(keys.key[node]) for node in (5, 6, 1, 2)]
    assert found == [key(5), key(4), key(0), key(6)]
    assert int(keys.children[3]) == 7


def test_a_child_that_ends_at_once_counts():
    keys = grown(start(), [NODES, 5], [3, 3], [True, True])
    assert int(keys.key[5]) == key(1)


def test_a_node_that_is_used_again_begins_anew():
    keys = grown(start(), [5, 6], [3, 3], [True, True])
    keys = grown(keys, [1, 2], [5, 5], [True, True])
    assert int(keys.children[5]) == 2
    keys = grown(keys, [5, NODES], [6, NO_NODE], [True, True])
    assert (int(keys.key[5]), int(keys.children[5])) == (key(1, 0), 0)
    keys = grown(keys, [7, NODES], [5, NO_NODE], [True, True])
    assert int(keys.key[7]) == key(1, 0, 0)


def test_a_last_child_leaves_nothing_to_a_node_with_its_parents_number():
    """Row 0 ends below node 5, which is freed and is the new node of row 1."""
    keys = grown(start(), [5, 6], [3, 3], [True, True])
    keys = grown(keys, [NODES, 5], [5, 6], [True, True])
    assert (int(keys.key[5]), int(keys.children[5])) == (key(1, 0), 0)


def test_drafts_draw_as_their_trunk_and_do_not_count():
    """Row 0 opens the trunk, rows 1 to 3 draft below it, row 4 branches off row 2."""
    source = [3, NODES + 0, NODES + 1, NODES + 0, NODES + 2]
    keys = grown(
        start(),
        [5, 6, 7, 1, 2],
        source,
        [True] * 5,
        draft=[False, True, True, True, False],
        depth=4,
    )
    assert [int(keys.key[node]) for node in (5, 6, 7, 1)] == [key(0)] * 4
    assert int(keys.key[2]) == key(0, 0)
    assert np.asarray(keys.children)[[3, 5, 6, 7]].tolist() == [1, 0, 0, 1]


def test_a_row_below_one_that_grows_in_place_is_the_nodes_child():
    keys = grown(start(), [5, 6], [3, 3], [True, True])
    keys = grown(keys, [5, 7], [5, NODES + 0], [False, True], depth=2)
    assert int(keys.key[7]) == key(0, 0)
    assert np.asarray(keys.children)[[3, 5]].tolist() == [2, 1]


def test_fresh_rows_draw_as_the_children_that_they_will_be():
    keys = start()
    node, number = jnp.array([3, 3, 5, NODES]), jnp.array([0, 1, 0, 2])
    found = keys.of_rows(node, number, jnp.array([0, 0, 4, 1]))
    assert found[:2].tolist() == [key(0), key(1)]
    assert int(found[2]) == int(keys.key[5])


def test_all_parts_of_a_split_node_have_its_key():
    """Node 4 is a new first part of node 5; children of either draw differently."""
    keys = grown(start(), [5, 6], [3, 3], [True] * 2)
    keys = grown(keys, [1, NODES], [5, NO_NODE], [True, False])
    origin = jnp.arange(NODES).at[4].set(5)
    keys = keys.relabelled(Relabelling(origin, jnp.arange(NODES)))
    assert int(keys.key[4]) == int(keys.key[5]) == key(0)
    keys = grown(keys, [2, 7], [4, 5], [True] * 2)
    assert int(keys.key[1]) == key(0, 0)
    assert int(keys.key[2]) == int(keys.key[7]) == key(0, 1)
