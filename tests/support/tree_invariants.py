"""A tree compared in full with a model on the host, or with another tree."""

import jax
import numpy as np

from deft_jax.tree.state import NO_NODE, Tree
from tests.support.oracle_tree import OracleTree


def check(tree: Tree, model: OracleTree) -> None:
    """Assert that a tree is sound and says what the model says."""
    tree.check()
    tree = jax.device_get(tree)
    assert np.flatnonzero(tree.live).tolist() == sorted(model.nodes)
    for node, expected in model.nodes.items():
        parent = NO_NODE if expected.parent is None else expected.parent
        assert tree.parent[node] == parent
        assert tree.start[node] == model.start(node)
        assert tree.trunk[node] == model.trunk(node)
        assert tree.storage[node] == expected.storage
    _check_tokens(tree, model)
    free = tree.num_nodes
    owner = [model.owners.get(page, free) for page in range(tree.num_pages)]
    np.testing.assert_array_equal(tree.page_owner, owner)
    assert tree.num_free_pages + len(model.owners) == tree.num_pages


def assert_same(actual: Tree, expected: Tree) -> None:
    """Assert that two trees are equal bit for bit, shapes and types too."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected
    )


def _check_tokens(tree: Tree, model: OracleTree) -> None:
    """Assert that every token is in its slot, and nothing is in any other."""
    expected = {
        token.slot: (node, token.position, token.token)
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
