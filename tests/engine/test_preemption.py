"""Requests that give way when the pool is full, and go on where they were."""

import pytest

from deft_jax.engine import eviction
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from tests.support.bench.replay_engines import TightRunner
from tests.support.strategies.prompt_lookup import PromptLookup
from tests.support.tiny_model import (
    CAPACITY,
    AsciiTokenizer,
    decode_alone,
    tiny_model,
)

PAGES = 24
"""Of the 64 that the capacity says, so that nothing new is compiled."""
LONG = Sampling(temperature=0.9, max_new_tokens=100, ignore_eos=True, seed=5)
PROMPTS = ["Hello world", "abc", "The quick brown fox", "12345"]
WAIT_S = 300


class SmallEngine(Engine):
    """An engine with fewer free pages than its capacity says."""

    pages = PAGES

    def _create_runner(self, model) -> Runner:
        runner = TightRunner(model, self.method)
        nodes = CAPACITY.nodes
        runner.free = {"num_free_pages": self.pages, "num_free_nodes": nodes}
        return runner


def new_engine(pages: int = PAGES, **options) -> Engine:
    kind = type("SmallEngine", (SmallEngine,), {"pages": pages})
    return kind(tiny_model(), AsciiTokenizer(), capacity=CAPACITY, **options)


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_nobody_ends_because_others_took_the_pages(n: int, prefix_cache: bool):
    """Four requests of 100 tokens take 60 pages, or 112, and there are 24 or 40."""
    engine = new_engine(prefix_cache=prefix_cache, pages=8 + 16 * n)
    trees = engine.generate(PROMPTS, BestOfN(n), LONG)
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        assert tree.notice is None
        for branch, leaf in enumerate(tree.leaves()):
            alone = decode_alone(prompt, LONG, branch)
            assert (leaf.tokens, leaf.finish_reason) == (alone.tokens, "length")
    assert engine.statistics()["preempted"] > 0
    engine.clear_cache()
    assert engine.state.tree.num_free_pages == 8 + 16 * n
    assert engine.state.tree.num_free_nodes == CAPACITY.nodes


def test_the_lowest_priority_gives_way():
    engine = new_engine(40)
    ended: list[int] = []
    handles = []
    for priority, prompt in enumerate(PROMPTS):
        handle = engine.submit(prompt, BestOfN(2), LONG, priority=priority)
        handle.add_done_callback(lambda _, priority=priority: ended.append(priority))
        handles.append(handle)
    for prompt, handle in zip(PROMPTS, handles, strict=True):
        for branch, leaf in enumerate(handle.result(WAIT_S).leaves()):
            assert leaf.tokens == decode_alone(prompt, LONG, branch).tokens
    assert engine.statistics()["preempted"] > 0
    assert ended[0] == 3


@pytest.mark.parametrize(
    "strategy",
    [BeamSearch(width=2, length=90), PromptLookup(depth=3, paths=2)],
    ids=["beams", "drafts"],
)
def test_a_strategy_that_is_preempted_goes_on_with_its_nodes(strategy, monkeypatch):
    """Little is kept in reserve, so that several start."""
    monkeypatch.setattr(eviction, "RESERVE_TOKENS", 8)
    sampling = Sampling(temperature=0.0, max_new_tokens=90, ignore_eos=True)
    alone = [new_engine().generate(p, strategy, sampling)[0] for p in PROMPTS]
    engine = new_engine()
    trees = engine.generate(PROMPTS, strategy, sampling)
    for tree, expected in zip(trees, alone, strict=True):
        assert [n.tokens for n in tree.nodes] == [n.tokens for n in expected.nodes]
        assert tree.notice is None
    assert engine.statistics()["preempted"] > 0


def test_a_request_that_cannot_fit_alone_ends_and_keeps_what_it_has():
    engine = new_engine()
    (tree,) = engine.generate("Hello", BestOfN(8), LONG)
    assert {leaf.finish_reason for leaf in tree.leaves()} == {"capacity"}
    assert "64 pages of 8 tokens" in str(tree.notice)
    for branch, leaf in enumerate(tree.leaves()):
        alone = decode_alone("Hello", LONG, branch).tokens
        assert leaf.tokens == alone[: len(leaf.tokens)] and len(leaf.tokens) > 8


def test_pinned_paths_give_way_before_a_request_ends():
    engine = new_engine()
    handles = [engine.submit(p * 3, sampling=LONG, pin=True) for p in PROMPTS[:3]]
    for handle in handles:
        handle.result(WAIT_S)
    (tree,) = engine.generate("Hello", BestOfN(1), LONG)
    assert tree.notice is None
    for branch, leaf in enumerate(tree.leaves()):
        assert leaf.tokens == decode_alone("Hello", LONG, branch).tokens
    for handle in handles:
        engine.unpin(handle.pin)
