"""Templates: the paper's workloads by their published numbers.

What they say of themselves is compared with a plain simulation.
"""

import random
from collections import Counter

import numpy as np
import pytest

from deft_jax.bench.trees.draft_templates import DraftTemplate, speculative
from deft_jax.bench.trees.templates import (
    REASONING_TASKS,
    TreeTemplate,
    few_shot,
    level_tree,
    load_workload,
    random_search,
    reasoning,
)
from deft_jax.errors import DeftError

BYTES_PER_TOKEN = 32 * 2 * 32 * 128 * 2
"""KV of Llama-3-8B in float16, counted per query head as in the paper."""

TREES = [
    few_shot(7, 3, 5),
    level_tree([1, 3, 7, 8], [5, 2, 3, 4]),
    TreeTemplate.create("chain", [-1, 0, 1, 2], [4, 1, 1, 3]),
    TreeTemplate.create("uneven", [-1, 0, 0, 1, 1, 3, 0], [3, 2, 9, 1, 4, 1, 1]),
    random_search(3, 5, 0.5, 0.3, tokens=(1, 9), prompt_tokens=6, seed=1),
    *(tree.shortened(50) for tree in reasoning("sorting")[:2]),
]
PAPER = {
    "few_shot_20": ([few_shot(4000, 20, 399)], 1.68, 17.62),
    "few_shot_30": ([few_shot(4000, 30, 399)], 2.10, 26.43),
    "few_shot_50": ([few_shot(4000, 50, 399)], 2.94, 44.05),
    "sorting": (reasoning("sorting"), 12.40, 59.96),
    "docmerge": (reasoning("docmerge"), 10.57, 39.74),
}
"""Trees, and the TB of KV that DeFT and attention per sequence read, from Table 5."""


@pytest.mark.parametrize("name", PAPER)
def test_the_kv_read_is_that_of_the_paper(name):
    trees, per_tree, per_sequence = PAPER[name]
    tree_reads = np.mean([tree.live_tokens.sum() for tree in trees])
    path_reads = np.mean([tree.path_tokens.sum() for tree in trees])
    assert tree_reads * BYTES_PER_TOKEN / 1e12 == pytest.approx(per_tree, rel=5e-3)
    assert path_reads * BYTES_PER_TOKEN / 1e12 == pytest.approx(per_sequence, rel=5e-3)


@pytest.mark.parametrize(
    ("task", "steps"), [("sorting", 4164), ("docmerge", 2847)], ids=REASONING_TASKS
)
def test_reasoning_has_the_papers_steps_and_widths(task, steps):
    trees = reasoning(task)
    assert len(trees) == 10 and len({tree.name for tree in trees}) == 10
    assert np.mean([tree.steps for tree in trees]) == pytest.approx(steps, abs=0.6)
    for tree in trees:
        children = Counter(tree.parents)
        assert set(children.values()) == {1, 10}
        assert 7 < tree.live_width.mean() < 11
        assert 10 <= tree.live_width.max() <= 26
        assert tree.live_tokens.max() < 20_000


def simulate(tree: TreeTemplate):
    """Step by step: how many nodes grow and are held, tokens held, path lengths."""
    held, fed = {0}, {0: tree.prompt_tokens}
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents):
        children.setdefault(parent, []).append(node)
    growing = set(children[0])
    while growing:
        held |= growing
        fed |= {node: fed.get(node, 0) + 1 for node in growing}
        length = [sum(fed[x] for x in path(tree, node)) for node in growing]
        yield len(growing), len(held), sum(fed[node] for node in held), sum(length)
        ended = {node for node in growing if fed[node] == tree.tokens[node]}
        growing = (growing - ended) | {x for y in ended for x in children.get(y, [])}
        needed = {x for node in growing for x in path(tree, node)}
        held = {0} | (held & needed)


def path(tree: TreeTemplate, node: int):
    """Return a node and all above it."""
    while node >= 0:
        yield node
        node = tree.parents[node]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
def test_a_template_knows_each_step(tree: TreeTemplate):
    told = list(simulate(tree))
    assert tree.steps == len(told)
    arrays = [tree.live_width, tree.live_nodes, tree.live_tokens, tree.path_tokens]
    np.testing.assert_array_equal(np.stack(arrays, axis=1), told)


def test_a_shortened_tree_has_the_same_topology():
    (tree, *_) = reasoning("sorting")
    short = tree.shortened(50)
    assert short.parents == tree.parents
    assert short.tokens == tuple(max(1, count // 50) for count in tree.tokens)


def test_level_trees_spread_children_evenly():
    tree = level_tree([1, 2, 5], [9, 3, 4])
    assert tree.parents == (-1, 0, 0, 1, 1, 1, 2, 2)
    assert tree.tokens == (9, 3, 3, 4, 4, 4, 4, 4)


def depths(tree: TreeTemplate):
    return [len(list(path(tree, node))) - 1 for node in range(len(tree.parents))]


def test_a_random_search_branches_as_often_as_it_says():
    """Without pruning and going on in place, nodes are rounds."""
    tree = random_search(3, 6, 1.0, 0.0, tokens=(2, 4), seed=3)
    assert tree == random_search(3, 6, 1.0, 0.0, tokens=(2, 4), seed=3)
    assert tree != random_search(3, 6, 1.0, 0.0, tokens=(2, 4), seed=4)
    depth, children = depths(tree), Counter(tree.parents)
    leaves = set(range(len(depth))) - set(tree.parents)
    assert {depth[leaf] for leaf in leaves} == {6}
    assert {children[node] for node in children if node > 0} == {1, 2, 3}
    assert set(tree.tokens[1:]) == {2, 3, 4}


def test_a_random_search_goes_on_in_place_and_survives():
    stays = random_search(4, 6, 0.0, 0.0, tokens=(2, 2))
    assert stays.tokens[1:] == (12,) * 4
    lone = random_search(4, 6, 0.0, 1.0, tokens=(2, 2))
    assert sorted(lone.tokens[1:]) == [2, 2, 2, 12]
    pruned = random_search(4, 30, 0.5, 0.7, tokens=(1, 1), prompt_tokens=9)
    assert pruned.steps == 30
    assert len(pruned.parents) < 60


def test_speculative_decoding_has_the_papers_steps():
    lengths = load_workload("speculative")["accept_lengths"]
    draw = random.Random(0)
    while sum(lengths) < 6000 - 1016:
        lengths.append(draw.randint(1, 5))
    template = speculative(64)
    assert template.accept_lengths == tuple(lengths)
    assert (template.steps, template.kept[-1]) == (1507, 4984)
    short = speculative(32, max_tokens=1016 + 8)
    assert short.accept_lengths == (1, 4, 3)


@pytest.mark.parametrize("drafts", [32, 64, 128, 256])
def test_draft_trees_have_their_tokens_and_reach_every_accept_length(drafts):
    real, star = speculative(drafts), speculative(drafts, "star")
    for template in (real, star):
        assert template.num_tokens == drafts and template.depth == 4
        for row, path in enumerate(template.paths, 1):
            above = template.parents[row]
            assert above < row and template.depths[above] == len(path) - 1
            assert (template.paths[above - 1] if above else ()) == path[:-1]
            assert template.ranks[row] == path[-1]
        kept = [template.depths[tip] + 1 for tip in template.tips]
        assert tuple(kept) == template.accept_lengths
    assert Counter(star.depths) == {0: 1, 1: drafts - 4, 2: 1, 3: 1, 4: 1}
    assert star.accept_lengths == real.accept_lengths


def test_a_draft_template_knows_each_step():
    template = DraftTemplate.create("x", 10, [[0], [1], [1, 0]], [1, 3, 2])
    assert template.parents == (-1, 0, 0, 2)
    assert template.tips == (0, 3, 1)
    assert template.kept.tolist() == [0, 1, 4, 6]
    assert template.live_width.tolist() == [4] * 3
    assert template.live_tokens.tolist() == [14, 15, 18]
    assert template.path_tokens.tolist() == [
        sum(10 + kept + 1 + depth for depth in (0, 1, 1, 2)) for kept in (0, 1, 4)
    ]


BAD = {
    "expected the parents and tokens of at least 2 nodes, got 1 parents": lambda: (
        TreeTemplate.create("x", [-1], [5])
    ),
    "2 parents and 3 tokens": lambda: TreeTemplate.create("x", [-1, 0], [5, 6, 7]),
    "the parent of node 1 must come before it.*got 1": lambda: TreeTemplate.create(
        "x", [-1, 1], [5, 6]
    ),
    "the parent of node 1 .* for node 0 alone, got -1": lambda: TreeTemplate.create(
        "x", [-1, -1], [5, 6]
    ),
    "the parent of node 0": lambda: TreeTemplate.create("x", [0, 0], [5, 6]),
    "node 1 has 0 tokens": lambda: TreeTemplate.create("x", [-1, 0], [5, 0]),
    "task must be one of": lambda: reasoning("chess"),
    "as many lengths as levels": lambda: level_tree([2, 4], [5, 5]),
    r"path \(1, 0\) must be there once, after": lambda: DraftTemplate.create(
        "x", 5, [[1, 0], [1]], [1]
    ),
    r"path \(0,\) must be there once": lambda: DraftTemplate.create(
        "x", 5, [[0], [0]], [1]
    ),
    "1 deep keeps at most 2 tokens, got an accept length of 3": lambda: (
        DraftTemplate.create("x", 5, [[0]], [1, 3])
    ),
    "every step need at least 1 token": lambda: DraftTemplate.create(
        "x", 5, [[0]], [1, 0]
    ),
    "expected a real or star tree of 32, 64, 128, 256 tokens, got 'real' of 33": (
        lambda: speculative(33)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_template_is_refused(message):
    with pytest.raises(DeftError, match=message) as error:
        BAD[message]()
    assert "\n" not in str(error.value)
