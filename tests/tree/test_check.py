"""`Tree.check` accepts what operations give and finds each kind of damage."""

import jax
import jax.numpy as jnp
import pytest

from deft_jax.errors import DeftError
from deft_jax.tree import branching
from deft_jax.tree.appending import append
from deft_jax.tree.state import NO_NODE, Tree, replace

NODES, PAGES, PAGE_SIZE = 8, 6, 4


def ints(*values):
    return jnp.array(values, jnp.int32)


def sound_tree():
    """Return a forest of nodes 0 to 4 on pages 0 to 3, whose draft is node 2.

    0 (3 tokens) ─ 1 (2) ─ 2 (1, a draft of 1)     page 0 of node 0, 1 of 1, 2 of 3,
                 └ 3 (1)       4 (empty)           1 also of 2; nodes 5 to 7 are free
    """
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    for parent, tokens, draft in [
        (NO_NODE, 3, False),
        (0, 2, False),
        (1, 1, True),
        (0, 1, False),
        (NO_NODE, 0, False),
    ]:
        tree, made = branching.branch(
            tree, ints(parent), jnp.array([True]), jnp.array([draft])
        )
        tree, _ = append(tree, ints(*made.tolist() * tokens), ints(*range(tokens)))
    return tree


TREE = sound_tree()


def test_what_the_operations_give_is_sound():
    TREE.check()
    Tree.create(1, 1, 1).check()
    assert TREE.first[:5].tolist() == [1, 3, 4, 2, 0]
    assert TREE.page_owner.tolist() == [0, 1, 3, NODES, NODES, NODES]


# Array, index, value and what the message says of it.
DAMAGE = [
    ("num_free_nodes", (), 2, "num_free_nodes is 2, but 3 nodes are free"),
    ("num_free_pages", (), 4, "num_free_pages is 4, but 3 pages are free"),
    ("free_nodes", 0, 1, "node 1 is in use, but 1 times on the list of free nodes"),
    ("free_nodes", 0, 6, "node 6 is free, but 2 times on the list of free nodes"),
    ("free_nodes", 0, NODES, "node 7 is free, but 0 times on the list of free nodes"),
    ("free_pages", 1, 2, "page 2 is in use, but 1 times on the list of free pages"),
    ("free_pages", 1, -3, "page 4 is free, but 0 times on the list of free pages"),
    ("parent", 6, 0, "node 6 is free, but its parent is 0, not -1"),
    ("end", 6, 3, "node 6 is free, but its end is 3, not 8"),
    ("count", 6, 1, "node 6 is free, but its count is 1, not 0"),
    ("storage", 6, 0, "node 6 is free, but its storage is 0, not 8"),
    ("trunk", 6, 0, "node 6 is free, but its trunk is 0, not 8"),
    (
        "trunk",
        2,
        3,
        "node 2 has the trunk node 3; it must be itself or its parent's, 1",
    ),
    ("trunk", 0, 1, "node 0 has the trunk node 1; it must be itself"),
    ("storage", 2, 2, "node 2 is a draft, but does not share its parent's pages"),
    (
        "slot_node",
        (2, 0),
        1,
        "page 2 of node 3 has a token of node 1 in slot 0, which is",
    ),
    ("parent", 3, 6, "node 3 has the parent 6, which is no live node"),
    ("parent", 3, 99, "node 3 has the parent 99, which is no live node"),
    ("parent", 3, -2, "node 3 has the parent -2, which is no live node"),
    ("first", 3, 3, "but 2 is next"),
    ("first", 3, -1, "node 3 has number -1, but 0 is next"),
    ("end", 2, 6, "node 2 has numbers 4 to 6 for a subtree of 1 nodes"),
    ("end", 4, 2, "node 4 has numbers 0 to 2 for a subtree of 1 nodes"),
    ("end", 1, 4, "node 2 has numbers 4 to 5, outside those of its parent 1, 3 to 4"),
    ("parent", 2, 3, "node 2 has numbers 4 to 5, outside those of its parent 3, 2 to"),
    ("parent", 3, NO_NODE, "node 0 has numbers 1 to 5 for a subtree of 3 nodes"),
    ("storage", 2, 3, "node 2 is stored in the pages of node 3; it must be itself"),
    ("storage", 1, 4, "node 1 is stored in the pages of node 4; it must be itself"),
    ("storage", 0, 1, "node 0 is stored in the pages of node 1; it must be itself"),
    ("slot_node", (4, 2), 0, "page 4 is free, but its slot 2 holds a token"),
    ("slot_node", (2, 0), NODES, "page 2 of node 3 holds no token, but is not free"),
    ("page_owner", 1, 2, "page 1 has the owner 2, which owns no pages"),
    ("slot_node", (1, 0), 3, "page 1 of node 1 has a token of node 3 in slot 0"),
    ("slot_node", (1, 0), 6, "page 1 of node 1 has a token of node 6 in slot 0"),
    ("slot_node", (1, 0), -1, "page 1 of node 1 has a token of node -1 in slot 0"),
    ("count", 3, 2, "node 3 counts 2 tokens, but 1 slots"),
    ("slot_node", (0, 3), 0, "node 0 counts 3 tokens, but 4 slots"),
    ("slot_position", (1, 1), 3, "node 1 starts at position 3, but its 2 tokens have"),
    ("slot_position", (0, 0), 7, "its 3 tokens have the positions [1, 2, 7]"),
    ("start", 4, 2, "node 4 is a root, but starts at position 2"),
    ("start", 2, 4, "node 2 starts at position 4, but its 1 tokens"),
    ("overflow", (), 8, "overflow is 8, which has bits without a meaning"),
]


@pytest.mark.parametrize(("name", "index", "value", "message"), DAMAGE)
def test_damage_is_found_and_named(name, index, value, message):
    broken = replace(TREE, **{name: getattr(TREE, name).at[index].set(value)})
    with pytest.raises(DeftError, match="broken tree: ") as caught:
        broken.check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_nest_nowhere_are_found():
    """Both roots have one child, and the children have changed places."""
    tree = Tree.create(4, 1, 1)
    for parent in (NO_NODE, NO_NODE, 0, 1):
        tree, _ = branching.branch(tree, ints(parent), jnp.array([True]))
    a, b = int(tree.parent[2]), int(tree.parent[3])
    swapped = tree.parent.at[2].set(b).at[3].set(a)
    with pytest.raises(DeftError, match="outside those of its parent"):
        replace(tree, parent=swapped).check()


def test_two_nodes_that_are_switched_in_every_slot_are_found():
    node = jnp.where(TREE.slot_node == 1, 2, TREE.slot_node)
    node = jnp.where(TREE.slot_node == 2, 1, node)
    with pytest.raises(DeftError, match="node 1 counts 2 tokens, but 1 slots"):
        replace(TREE, slot_node=node).check()


def test_a_child_that_starts_before_its_parent_ends_is_found():
    """An empty child: its own tokens say nothing."""
    tree, made = branching.branch(TREE, ints(3), jnp.array([True]))
    tree = replace(tree, start=tree.start.at[made[0]].set(3))
    message = "node 5 starts at position 3, but its parent 3 ends at 4; a node must not"
    with pytest.raises(DeftError, match=message):
        tree.check()


def test_a_traced_tree_cannot_be_checked():
    with pytest.raises(DeftError, match="a traced tree has no values to check"):
        jax.jit(lambda tree: tree.check())(TREE)
