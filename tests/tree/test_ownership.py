"""Whose nodes are, and what the end of a request takes with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.tree import branching, counting, pruning
from deft_jax.tree.ownership import owned
from deft_jax.tree.state import NO_NODE, Tree

NODES = 8

branch = jax.jit(branching.branch)


@pytest.fixture(params=[0, counting.MAX_NODE_PAIRS], ids=["summed", "compared"])
def either(request, monkeypatch):
    monkeypatch.setattr(counting, "MAX_NODE_PAIRS", request.param)


@functools.cache
def compiled(limit):
    """Return a jitted `prune` of its own for each `MAX_NODE_PAIRS`."""

    def run(tree, doomed, keep=None, resting=None, roots=None):
        return pruning.prune(tree, doomed, keep, resting=resting, roots=roots)

    return jax.jit(run)


def prune(*arguments, **masks):
    return compiled(counting.MAX_NODE_PAIRS)(*arguments, **masks)


def ints(*values):
    return jnp.array(values, jnp.int32)


def marked(*nodes):
    return jnp.isin(jnp.arange(NODES), jnp.array(nodes, jnp.int32))


def cached():
    r"""Return a forest whose node P is a prompt, and its nodes.

    P ┬ A ─ B ─ C ┬ D        requests begin at A, at C and at F
      │           └ E
      └ F ─ G
    """
    tree, nodes = Tree.create(NODES, 4, 4), []
    for parent in (NO_NODE, 0, 1, 2, 3, 3, 0, 6):
        above = parent if parent == NO_NODE else nodes[parent]
        tree, [node] = branch(tree, ints(above), jnp.array([True]))
        nodes.append(int(node))
    return tree, nodes


def survivors(tree, nodes):
    """Return the letters of the nodes that are live."""
    tree.check()
    return "".join(
        letter
        for letter, node in zip("PABCDEFG", nodes, strict=True)
        if tree.live[node]
    )


def test_a_node_is_of_the_nearest_root_above():
    tree, (p, a, b, c, d, e, f, g) = cached()
    slots = owned(tree, ints(f, NODES, c, a))
    found = slots[ints(p, a, b, c, d, e, f, g)].tolist()
    assert found == [4, 3, 3, 2, 2, 2, 0, 0]
    after = prune(tree, marked(f))
    assert owned(after, ints(f, NODES, c, a))[ints(f, g)].tolist() == [4, 4]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("ended", "resting", "left"),
    [
        # Nobody needs the prompt but requests; it goes with the last, unless it rests.
        ("F", "", "PABCDE"),
        ("F", "P", "PABCDE"),
        ("ACF", "", ""),
        ("ACF", "P", "P"),
        # A request that began below another one stays, with all above it.
        ("A", "", "PABCDEFG"),
        ("AC", "", "PFG"),
        ("C", "", "PFG"),
        ("C", "B", "PABFG"),
        # What rests stays within the request, but nothing below it.
        ("AC", "C", "PABCFG"),
        ("ACF", "D", "PABCD"),
    ],
)
def test_the_end_of_a_request_takes_what_is_its_own(ended, resting, left):
    tree, nodes = cached()
    number = dict(zip("PABCDEFG", nodes, strict=True))
    _, a, _, c, _, _, f, _ = nodes
    after = prune(
        tree,
        marked(*(number[x] for x in ended)),
        resting=marked(*(number[x] for x in resting)),
        roots=ints(a, c, f, NODES),
    )
    assert survivors(after, nodes) == left


def test_a_node_of_a_running_request_stays_when_one_below_it_ends():
    """B is where a row of the request of A is; the plan continues it."""
    tree, nodes = cached()
    _, a, b, c, _, _, f, _ = nodes
    after = prune(tree, marked(c), marked(b), roots=ints(a, c, f))
    assert survivors(after, nodes) == "PABFG"


def test_without_roots_a_subtree_goes_as_a_whole():
    tree, nodes = cached()
    _, a, *_ = nodes
    assert survivors(prune(tree, marked(a)), nodes) == "PFG"
    np.testing.assert_array_equal(
        prune(tree, marked(a)).first, prune(tree, marked(a), roots=ints(a)).first
    )
