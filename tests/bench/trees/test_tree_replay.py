"""Tree replays: the engine grows the template itself, with the model's own tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from deft_jax.bench.trees.templates import (
    TreeTemplate,
    few_shot,
    level_tree,
    random_search,
    reasoning,
)
from deft_jax.bench.trees.tree_replay import TreeReplay, capacity, common_capacity
from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import run_decode
from deft_jax.errors import CapacityError
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.sampling.params import Sampling
from tests.runtime.test_one_trace import num_traces
from tests.support.bench.replay_engines import ReplayEngine, TightEngine
from tests.support.tiny_model import CONFIG, path_logprobs

UNEVEN = TreeTemplate.create(
    "uneven", [-1, 0, 0, 0, 1, 1, 1, 4, 4, 3, 9], [11, 3, 9, 5, 1, 8, 13, 2, 6, 7, 1]
)
"""Branches while others run on, in nodes of 1 token and into a single child."""

TREES = [
    UNEVEN,
    few_shot(9, 7, 13),
    level_tree([1, 2, 6, 13], [17, 3, 1, 9]),
    random_search(3, 7, 0.5, 0.3, tokens=(1, 9), prompt_tokens=6, seed=0),
    random_search(4, 9, 0.4, 0.5, tokens=(1, 20), prompt_tokens=20, seed=5),
    *(tree.shortened(50) for tree in reasoning("sorting")[2:4]),
    *(tree.shortened(50) for tree in reasoning("docmerge")[:2]),
]
SMALL = TREES[:2]
"""Short enough for the context that the dense model decodes."""

PAGE_SIZE = 8
CAPACITY = common_capacity(TREES, PAGE_SIZE)


@pytest.fixture(scope="module")
def shared() -> Engine:
    """Return one engine for all trees."""
    return ReplayEngine(CAPACITY)


def prompt(template: TreeTemplate, first: int = 40) -> list[int]:
    return [first + at % 50 for at in range(template.prompt_tokens)]


def replay(engine: Engine, template: TreeTemplate) -> GenerationTree:
    strategy = TreeReplay(template)
    (tree,) = engine.generate(prompt(template), strategy, strategy.sampling)
    return tree


def assert_is(tree: GenerationTree, template: TreeTemplate) -> None:
    """Assert that the tree has the template's nodes, in the order of the replay."""
    nodes = TreeReplay(template).result_nodes()
    assert tree.notice is None
    assert sorted(nodes) == list(range(len(template.parents))) and nodes[0] == 0
    assert len(tree.nodes) == len(nodes)
    origin = {node.id: x for node, x in zip(tree.nodes, nodes, strict=True)}
    for node in tree.nodes:
        parent = -1 if node.parent is None else origin[node.parent]
        assert parent == template.parents[origin[node.id]]
        assert len(node.tokens) == template.tokens[origin[node.id]]
    ended = {node.finish_reason for node in tree.leaves()}
    assert ended == {"pruned"}


@pytest.mark.parametrize("template", TREES, ids=lambda template: template.name)
def test_the_result_is_the_template(shared: Engine, template: TreeTemplate):
    tree = replay(shared, template)
    assert_is(tree, template)
    assert tree.stats.generated_tokens == sum(template.tokens[1:])
    assert tree.stats.kv_tokens_read == template.live_tokens.sum()
    assert tree.stats.kv_tokens_read_per_sequence == template.path_tokens.sum()
    assert shared.state.tree.num_free_pages == CAPACITY.pages
    assert shared.state.tree.num_free_nodes == CAPACITY.nodes


def test_trees_share_a_compilation(shared: Engine):
    assert_is(replay(shared, TREES[0]), TREES[0])
    before = num_traces(run_decode)
    for template in TREES[1:]:
        assert_is(replay(shared, template), template)
    assert num_traces(run_decode) == before
    assert len({TreeReplay(template).planner for template in TREES}) == 1


@pytest.mark.parametrize("template", SMALL, ids=lambda template: template.name)
def test_tokens_are_the_models_own(shared: Engine, template: TreeTemplate):
    """Greedy, and of siblings each takes the next in the order of likelihood."""
    tree = replay(shared, template)
    nodes = TreeReplay(template).result_nodes()
    result = {x: node for x, node in zip(nodes, tree.nodes, strict=True)}
    eldest = {parent: at for at, parent in reversed(list(enumerate(template.parents)))}
    for at, parent in enumerate(template.parents[1:], 1):
        node = result[at]
        above = [x for step in tree.path(node)[:-1] for x in step.tokens]
        exact = path_logprobs([*above, *node.tokens])[len(above) - 1 : -1]
        siblings = template.parents[eldest[parent] : at].count(parent)
        order = np.argsort(-exact, axis=1, kind="stable")
        assert node.tokens[0] == order[0, siblings]
        assert node.tokens[1:] == tuple(order[1:, 0])
        told = exact[np.arange(len(node.tokens)), list(node.tokens)]
        np.testing.assert_allclose(node.logprobs, told, atol=2e-4)


def test_the_template_says_when_branches_end_not_the_sampling(shared: Engine):
    """But for its limit, which no planner exceeds."""
    strategy = TreeReplay(UNEVEN)
    limit = strategy.sampling.max_new_tokens
    sampling = Sampling(temperature=0.0, max_new_tokens=limit)
    (tree,) = shared.generate(prompt(UNEVEN), strategy, sampling)
    assert_is(tree, UNEVEN)
    assert tree.nodes == replay(shared, UNEVEN).nodes


def test_prompts_take_turns(shared: Engine):
    strategy = TreeReplay(UNEVEN)
    prompts = [prompt(UNEVEN, first=first) for first in (33, 44, 33)]
    trees = shared.generate(prompts, strategy, strategy.sampling)
    for tree in trees:
        assert_is(tree, UNEVEN)
    assert trees[0].nodes == trees[2].nodes != trees[1].nodes


@pytest.mark.parametrize("template", TREES, ids=lambda template: template.name)
def test_pages_and_nodes_needed_are_exact(template: TreeTemplate):
    strategy = TreeReplay(template)
    pages, nodes = strategy.pages_needed(PAGE_SIZE), strategy.nodes
    enough = TightEngine(CAPACITY, pages=pages, nodes=nodes)
    assert_is(replay(enough, template), template)
    for no_pages, no_nodes in [(1, 0), (0, 1)]:
        less = TightEngine(CAPACITY, pages=pages - no_pages, nodes=nodes - no_nodes)
        tree = replay(less, template)
        assert tree.notice is not None and "ran out" in tree.notice


@pytest.mark.parametrize("template", TREES, ids=lambda template: template.name)
def test_a_child_takes_the_lowest_idle_row(template: TreeTemplate):
    strategy = TreeReplay(template)
    size = dataclasses.replace(CAPACITY, rows=strategy.rows)
    state = jax.device_get(strategy.planner.init(size))
    for when, source, rank in zip(state.when, state.source, state.rank, strict=True):
        starts, runs = np.flatnonzero(rank >= 0), source >= 0
        width = template.live_width[when] if 0 <= when < template.steps else 0
        assert runs.sum() == width
        open_rows = np.flatnonzero(~runs | (rank >= 0))
        assert starts.tolist() == open_rows[: len(starts)].tolist()


def test_capacities_are_those_of_the_template():
    size = capacity(few_shot(4000, 50, 399), 64)
    assert size == Capacity(
        requests=1, rows=64, nodes=64, pages=512, page_size=64, chunk=256
    )
    assert capacity(few_shot(64, 2, 3)).chunk == 64
    assert common_capacity(TREES, PAGE_SIZE).covers(
        dataclasses.replace(capacity(TREES[1], PAGE_SIZE), rows=CAPACITY.rows)
    )


def test_a_replay_refuses_several_requests_at_a_time():
    several = ReplayEngine(dataclasses.replace(CAPACITY, requests=2))
    with pytest.raises(CapacityError, match="1 request at a time, the engine 2"):
        replay(several, UNEVEN)


def test_the_small_trees_fit_the_dense_model():
    assert all(x.prompt_tokens + x.steps < CONFIG.context_length for x in SMALL)
