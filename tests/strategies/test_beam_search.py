"""Beam search holds what it needs: few nodes, full pages, and the same text as ever."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner
from deft_jax.models.config.shapes import SHAPES
from deft_jax.runtime.state import Report, Turn
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.traits import footprint_of
from examples.beam_search import BeamSearch
from tests.support.tiny_model import AsciiTokenizer, tiny_model

WIDTH, LENGTH, PAGE_SIZE = 8, 80, 16
BEAM = BeamSearch(width=WIDTH, length=LENGTH)
TIGHT = Capacity(
    requests=1, rows=8, nodes=BEAM.nodes, pages=48, page_size=PAGE_SIZE, chunk=32
)
PROMPTS = ["The quick brown fox jumps over it.", "x"]
ENDLESS = Sampling(max_new_tokens=LENGTH, ignore_eos=True)


@dataclasses.dataclass(frozen=True)
class Holding:
    """What the forest holds after a step."""

    tokens: int
    pages: int
    nodes: int


def look(tree) -> Holding:
    tree = jax.device_get(tree)
    tokens = int(np.sum(tree.slot_node < tree.num_nodes))
    pages = tree.num_pages - int(tree.num_free_pages)
    return Holding(tokens, pages, tree.num_nodes - int(tree.num_free_nodes))


class WatchedRunner(Runner):
    """Runs single steps and notes what is held after each."""

    def __init__(self, model, method):
        super().__init__(model, method)
        self.held: list[Holding] = []

    def decode(self, table, turn: Turn, planner, width: int) -> Report:
        """Run one step at most, whatever is asked for."""
        single = dataclasses.replace(turn, max_steps=np.minimum(turn.max_steps, 1))
        report = super().decode(table, single, planner, width)
        if turn.max_steps:
            self.state.tree.check()
            self.held.append(look(self.state.tree))
        return report


class WatchedEngine(Engine):
    """An engine of single steps that caches nothing."""

    runner: WatchedRunner

    def _create_runner(self, model) -> Runner:
        return WatchedRunner(model, self.method)


@functools.cache
def search(nodes: int, shares_pages: bool):
    """Return the trees of `PROMPTS`, and what was held after each step of each."""
    beam = dataclasses.replace(BEAM, shares_pages=shares_pages)
    capacity = dataclasses.replace(TIGHT, nodes=nodes, pages=TIGHT.pages * 4)
    engine = WatchedEngine(
        tiny_model(), AsciiTokenizer(), capacity=capacity, prefix_cache=False
    )
    held = engine.runner.held
    trees, steps = [], []
    for prompt in PROMPTS:
        trees += engine.generate(prompt, beam, ENDLESS)
        steps.append(held[:])
        held.clear()
    return trees, steps


def tokens_of(tree):
    return [(node.id, node.parent, node.tokens, node.finish_reason) for node in tree]


def test_pages_are_full_at_every_step():
    _, requests = search(TIGHT.nodes, True)
    for steps in requests:
        assert len(steps) >= LENGTH
        for step in steps:
            least = math.ceil(step.tokens / PAGE_SIZE)
            assert step.pages <= 1.3 * least + WIDTH / 4
        assert max(step.tokens for step in steps) > 100


def test_nodes_are_few_and_the_text_is_that_without_collapse():
    tight, requests = search(TIGHT.nodes, True)
    loose, roomy = search(1024, False)
    assert max(step.nodes for steps in roomy for step in steps) > TIGHT.nodes
    assert max(step.nodes for steps in requests for step in steps) <= TIGHT.nodes
    for one, other in zip(tight, loose, strict=True):
        assert tokens_of(one.nodes) == tokens_of(other.nodes)
        ones = [x for node in one.nodes for x in node.logprobs]
        others = [x for node in other.nodes for x in node.logprobs]
        np.testing.assert_allclose(ones, others, atol=2e-4)


def test_without_shared_pages_each_branch_would_open_its_own():
    """Otherwise the bound above would say nothing."""
    _, shared = search(TIGHT.nodes, True)
    _, alone = search(1024, False)
    for steps, others in zip(shared, alone, strict=True):
        most = max(step.pages for step in steps)
        assert max(step.pages for step in others) > 2 * most


def test_all_state_is_free_again():
    for _, requests in (search(TIGHT.nodes, True), search(1024, False)):
        assert all(steps[-1] == Holding(0, 0, 0) for steps in requests)


@pytest.mark.parametrize("prompt", [1, 1000])
def test_a_beam_reserves_what_as_many_branches_do(prompt):
    """Width 8 and 512 tokens of Llama 3 8B."""
    config = SHAPES["llama3_8b"]
    token_bytes = 2 * config.num_kv_heads * config.head_dim * config.num_layers * 2

    def reserved(strategy):
        needs = footprint_of(strategy)
        capacity = Capacity.for_requests(
            [prompt], 512, needs.rows, needs.nodes, pages=needs.pages(512, 64)
        )
        return capacity.tokens * token_bytes

    beam, branches = (
        reserved(x) for x in (BeamSearch(width=8, length=512), BestOfN(8))
    )
    assert branches / 1.25 <= beam <= 1.25 * branches < 20e9
