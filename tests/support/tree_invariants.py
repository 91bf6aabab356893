"""What must hold of a tree after every operation, checked against a host model."""

import jax
import numpy as np

from deft_jax.tree.state import NO_NODE, Tree
from tests.support.host_tree import HostTree


def check(tree: Tree, model: HostTree) -> None:
    """Assert that every array of a tree says what the model says."""
    tree = jax.device_get(tree)
    _check_nodes(tree, model)
    _check_depth_first_numbers(tree, model)
    _check_tokens(tree, model)
    _check_pages(tree, model)


def assert_same(actual: Tree, expected: Tree) -> None:
    """Assert that two trees are equal bit for bit, shapes and types too."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected
    )


def _check_nodes(tree: Tree, model: HostTree) -> None:
    for node in range(tree.num_nodes):
        assert bool(tree.live[node]) == (node in model.nodes), f"node {node}"
    for node, expected in model.nodes.items():
        parent = NO_NODE if expected.parent is None else expected.parent
        assert tree.parent[node] == parent
        assert tree.start[node] == expected.start
        assert tree.count[node] == len(expected.tokens)
        assert tree.storage[node] == model.trunk(node)
    free = [x for x in range(tree.num_nodes) if x not in model.nodes]
    _check_stack(tree.free_nodes, tree.num_free_nodes, free)
    for array, value in [
        (tree.parent, NO_NODE),
        (tree.first, tree.num_nodes),
        (tree.end, tree.num_nodes),
        (tree.count, 0),
        (tree.storage, tree.num_nodes),
    ]:
        assert np.all(array[free] == value)


def _check_depth_first_numbers(tree: Tree, model: HostTree) -> None:
    """A node's interval holds the numbers of its subtree and no others."""
    numbers = sorted(int(tree.first[node]) for node in model.nodes)
    assert numbers == list(range(len(model.nodes)))
    for node in model.nodes:
        below = sorted(int(tree.first[each]) for each in model.subtree(node))
        assert below == list(range(tree.first[node], tree.end[node]))


def _check_tokens(tree: Tree, model: HostTree) -> None:
    """Every token is in the slot it was put in, and nothing is in any other."""
    expected = {
        token.place: (node, token.position, token.token)
        for node, token in model.tokens()
    }
    assert len(expected) == len(model.tokens()), "two tokens share a slot"
    pages, slots = np.nonzero(tree.slot_node < tree.num_nodes)
    found = {
        (int(page), int(slot)): (
            int(tree.slot_node[page, slot]),
            int(tree.slot_position[page, slot]),
            int(tree.slot_token[page, slot]),
        )
        for page, slot in zip(pages, slots, strict=True)
    }
    assert found == expected
    for node in model.nodes:
        path = [token.position for token in model.path(node)]
        assert path == list(range(len(path))), f"positions on the path of {node}"


def _check_pages(tree: Tree, model: HostTree) -> None:
    """Live and free pages are the pool, and no page has two owners."""
    owners = model.page_owners()
    owner = [owners.get(page, tree.num_nodes) for page in range(tree.num_pages)]
    np.testing.assert_array_equal(tree.page_owner, owner)
    fill = np.zeros(tree.num_pages, int)
    for _, token in model.tokens():
        fill[token.place[0]] += 1
    np.testing.assert_array_equal(tree.page_fill, fill)
    free = [page for page in range(tree.num_pages) if page not in owners]
    _check_stack(tree.free_pages, tree.num_free_pages, free)


def _check_stack(stack, height, expected: list[int]) -> None:
    assert sorted(stack[:height].tolist()) == expected
