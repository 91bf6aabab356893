"""The attention benchmark's trees: what they hold, and what grouping makes of them."""

import json

import jax
import numpy as np
import pytest

from deft_jax.bench.attention.cases import PEERS, Case, all_cases, select_cases
from deft_jax.bench.trees.level_tree import level_tree
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree
from tests.attention import test_grouping
from tests.support import tree_invariants
from tests.support.forests import Forest, walk_paths
from tests.support.oracle_tree import OracleTree

SMALL = {
    "one_node": ((1,), (5,), False),
    "star": ((1, 6), (9, 1), False),
    "uneven": ((1, 3, 7, 8), (5, 8, 2, 9), False),
    "draft_star": ((1, 6), (9, 1), True),
    "draft_tree": ((1, 2, 5), (10, 1, 2), True),
}
PAGE_SIZES = [4, 16]

by_shape = pytest.mark.parametrize(
    ("nodes", "tokens", "drafts"), SMALL.values(), ids=SMALL
)


@by_shape
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_level_tree_is_a_state_of_a_forest(nodes, tokens, drafts, page_size: int):
    tree, slots = level_tree(nodes, tokens, page_size, drafts=drafts)
    model = OracleTree()
    held = slots_by_node(tree)
    for node, parent in enumerate(even_parents(nodes)):
        model.branch(node, parent, drafts)
        for at in held[node]:
            model.append([(node, 0, at)])
    tree_invariants.check(tree, model)
    assert [len(model.nodes[x].tokens) for x in model.nodes] == [
        each for n, each in zip(nodes, tokens, strict=True) for _ in range(n)
    ]
    leaves = list(model.nodes)[-nodes[-1] :]
    check_slots(slots, model, leaves)
    pages = -(-np.bincount([model.trunk(x) for x, _ in model.tokens()]) // page_size)
    assert tree.num_pages == pages.sum()


@by_shape
def test_grouping_of_a_level_tree_follows_its_paths(nodes, tokens, drafts):
    tree, slots = level_tree(nodes, tokens, 4, drafts=drafts)
    forest = Forest(tree=tree, slots=slots, paths=walk_paths(tree, slots))
    test_grouping.check(forest)
    case = Case("case", nodes, tokens, 1, 1, 1)
    assert case.flops == 4 * sum(map(len, forest.paths))
    assert case.tokens == int(np.sum(tree.page_fill))
    assert case.leaves == len(forest.paths)


def test_pages_are_shuffled_by_seed():
    trees = [level_tree((1, 9), (40, 8), 4, seed=seed)[0] for seed in (0, 0, 1)]
    tree_invariants.assert_same(trees[0], trees[1])
    owners = [np.asarray(tree.page_owner) for tree in trees[1:]]
    assert (owners[0] != owners[1]).any()
    assert (np.diff(owners[0]) < 0).any()


def test_a_thousand_leaves_are_numbered_by_depth():
    case = all_cases()[7]
    tree, slots = level_tree(case.nodes, case.tokens_per_node, 16)
    first, end = np.asarray(tree.first), np.asarray(tree.end)
    parent = np.asarray(tree.parent)[1:]
    assert sorted(first) == list(range(tree.num_nodes))
    assert (first[parent] < first[1:]).all() and (end[1:] <= end[parent]).all()
    assert (np.diff(first[np.asarray(slots.node)]) > 0).all()
    assert int(np.sum(tree.page_fill)) == case.tokens == 278816


def test_cases_are_those_of_the_peers_and_of_the_workloads():
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases) == 37 + 6 + 4
    assert [case.peer_cold_us is None for case in cases] == [False] * 37 + [True] * 10
    assert cases[0].kv_bytes(itemsize=2) == 10518528
    assert cases[29].kv_bytes(itemsize=2) == 4568121344
    assert cases[38].tokens == 4000 + 20 * 399
    for case in cases:
        assert case.nodes[0] == 1 and len(case.nodes) == len(case.tokens_per_node)


def test_the_file_of_the_peers_agrees_with_its_trees():
    peers = json.loads(PEERS.read_text())
    for case, facts in zip(all_cases(), peers["cases"], strict=False):
        assert case.leaves == facts["leaves"]
        assert facts["best_peer"] in peers["methods"]


def test_cases_are_selected_by_number():
    cases = all_cases()
    assert select_cases("all") == cases
    assert select_cases("3,0,46") == [cases[3], cases[0], cases[46]]
    for wrong in ("", "47", "-1", "1,x", "1;2"):
        with pytest.raises(ValueError, match='"all" or numbers below 47'):
            select_cases(wrong)


def even_parents(nodes: tuple[int, ...]) -> list[int | None]:
    """Return the parent of each node, level by level."""
    parents: list[int | None] = [None]
    for level in range(1, len(nodes)):
        begin, width = sum(nodes[: level - 1]), nodes[level - 1]
        parents += [begin + j * width // nodes[level] for j in range(nodes[level])]
    return parents


def slots_by_node(tree: Tree) -> dict[int, list[tuple[int, int]]]:
    """Return the (page, slot) of each node's tokens, by position."""
    held: dict[int, list] = {node: [] for node in range(tree.num_nodes)}
    position = np.asarray(tree.slot_position)
    for at, node in np.ndenumerate(np.asarray(tree.slot_node)):
        if node < tree.num_nodes:
            held[int(node)].append((int(position[at]), at))
    return {node: [at for _, at in sorted(tokens)] for node, tokens in held.items()}


def check_slots(slots: Slots, model: OracleTree, leaves: list[int]) -> None:
    """Assert that each row is the last token of a leaf."""
    rows = jax.device_get(slots)
    assert rows.node.tolist() == leaves
    for row, leaf in enumerate(leaves):
        last = model.nodes[leaf].tokens[-1]
        assert (rows.page[row], rows.slot[row]) == last.slot
        assert rows.position[row] == last.position
