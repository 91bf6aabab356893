"""The trees that an IO account counts, and runs replayed step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.accounting.tree_steps import TreeSteps, few_shot, search_stretches
from deft_jax.errors import DeftError
from deft_jax.tree.state import NO_NODE


def test_queries_are_numbered_depth_first():
    """Node 3 is below 1, so its query comes before that of 2."""
    tree = TreeSteps.create(
        [-1, 0, 0, 1, -1, 4], [5, 5, 5, 5, 5, 5], [1, 2, 1, 3, 0, 1]
    )
    assert tree.queries_below.tolist() == [7, 5, 1, 3, 1, 1]
    assert tree.first_ranks.tolist() == [0, 1, 6, 3, 7, 7]
    assert tree.num_queries == 8


def test_tiles_see_the_nodes_above_their_queries():
    """Ranks 0 1 | 2 3 are of the nodes 1 1 | 2 3; nobody is below 4."""
    tree = TreeSteps.create([-1, 0, 0, 2, 0], [100, 20, 3, 40, 5], [0, 2, 1, 1, 0])
    assert tree.tile_tokens(2).tolist() == [[120, 143]]
    assert tree.tile_tokens(3).tolist() == [[123, 143]]
    assert tree.tile_tokens(9).tolist() == [[163]]


def test_leaves_query_by_default():
    tree = TreeSteps.create([-1, 0, 0, 1], [[3, 1, 1, 1], [3, 1, 2, 2]])
    assert tree.queries.tolist() == [0, 0, 1, 1]
    assert tree.num_steps == 2
    assert tree.along_path(tree.tokens).tolist() == [[3, 4, 4, 5], [3, 4, 5, 6]]


def test_few_shot_leaves_hold_a_token_more_each_step():
    steps = few_shot(10, 2, 3)
    assert steps.tokens.tolist() == [[10, 1, 1], [10, 2, 2], [10, 3, 3]]
    assert steps.queries.tolist() == [0, 1, 1]


def test_replay_branches_and_prunes():
    """Steps 0 to 5 of a prompt of 10 tokens.

    1: xx      expanded into 3 and 4; gone with 4
    2: x       a leaf, pruned when it ends
    3:   x
    4:   xxxx
    """
    seen = [
        (x.parents.tolist(), x.queries.tolist(), x.tokens.tolist())
        for x in search_stretches([-1, 0, 0, 1, 1], [10, 2, 1, 1, 4])
    ]
    assert seen == [
        ([-1, 0, 0], [0, 1, 1], [[10, 1, 1]]),
        ([-1, 0], [0, 1], [[10, 2]]),
        ([-1, 0, 1, 1], [0, 0, 1, 1], [[10, 2, 1, 1]]),
        ([-1, 0, 1], [0, 0, 1], [[10, 2, 2], [10, 2, 3], [10, 2, 4]]),
    ]


def walked(parents, tokens):
    """Tokens read per step by the tree, by its sequences, and sequences, by walking."""
    start = [0] * len(parents)
    paths = []
    for node, parent in enumerate(parents):
        if parent != NO_NODE:
            is_root = parents[parent] == NO_NODE
            start[node] = 0 if is_root else start[parent] + tokens[parent]
        paths.append([*(paths[parent] if parent != NO_NODE else []), node])
    live = [
        [
            node
            for node, parent in enumerate(parents)
            if parent != NO_NODE and start[node] <= step < start[node] + tokens[node]
        ]
        for step in range(sum(tokens))
    ]

    def held(node, step):
        is_root = parents[node] == NO_NODE
        return tokens[node] if is_root else min(tokens[node], step - start[node] + 1)

    for step, leaves in enumerate(live):
        seen = [node for leaf in leaves for node in paths[leaf]]
        if leaves:
            shared = sum(held(node, step) for node in set(seen))
            yield shared, sum(held(node, step) for node in seen), len(leaves)


@given(st.data())
def test_replay_follows_a_walk_of_every_step(data: st.DataObject):
    size = data.draw(st.integers(1, 12))
    parents = [data.draw(st.integers(NO_NODE, node - 1)) for node in range(size)]
    tokens = [data.draw(st.integers(0, 6)) for _ in range(size)]
    found = []
    for steps in search_stretches(parents, tokens):
        paths = steps.along_path(steps.tokens) @ steps.queries
        shared = steps.tokens.sum(axis=1)
        assert (steps.queries_below > 0).all()
        found += [(*x, steps.num_queries) for x in zip(shared, paths, strict=True)]
    assert found == list(walked(parents, tokens))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1, 0], [3]), r"parents \[N\].* got \(2,\), \(2,\) and \(1, 1\); give"),
        (([-1, 0], [3, 1], [1]), r"got \(2,\), \(1,\) and"),
        (([-1, 1], [3, 1]), "from -1 to the node's own number - 1, got 1 at node 1; n"),
        (([-1, -2], [3, 1]), "got -2 at node 1"),
        (([-1, 0], [3, -1]), "at least 0 tokens, got -1 at node 1; use"),
        (([-1, 0], [3, 1], [0, -3]), "at least 0 queries, got -3 at node 1; use"),
        (([-1, 0], [3, 1], [0, 2]), "as many tokens as queries, got 1 for 2 at node 1"),
        (([-1, 0], [[3, 1], [3, 0]]), "got 0 for 1 at node 1; count the step's own"),
    ],
)
def test_descriptions_are_checked(arguments, message: str):
    with pytest.raises(DeftError, match=message):
        TreeSteps.create(*arguments)


def test_counts_must_not_be_negative():
    with pytest.raises(DeftError, match="at least 0 tokens, got -4 at node 0"):
        few_shot(-4, 1, 3)
    with pytest.raises(DeftError, match="got -1 at node 1"):
        list(search_stretches([-1, 0], [3, -1]))
