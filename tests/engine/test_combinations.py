"""What combines with what: every strategy with every option, in every use.

Each request is compared with itself alone, on an engine that holds nothing else. The
table in `docs/design.md` says the same.
"""

import dataclasses
import functools
from collections import defaultdict
from typing import Any

import pytest

from deft_jax.engine import eviction
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN, SelfConsistency
from examples.beam_search import BeamSearch
from examples.best_first import BestFirst
from tests.support.bench.replay_engines import TightRunner
from tests.support.strategies.prompt_lookup import PromptLookup
from tests.support.tiny_model import (
    CAPACITY,
    AsciiTokenizer,
    tiny_engine,
    tiny_model,
)

PROMPTS = ["The quick brown fox", "The quick brown fox jumps", "Hello world", "x"]
LENGTH = 12
STRATEGIES: dict[str, Any] = {
    "best-of-n": BestOfN(3),
    "self-consistency": SelfConsistency(2, pattern="(.)"),
    "beams": BeamSearch(width=3, length=10),
    "best-first": BestFirst(width=2, children=3, nodes=24),
    "drafts": PromptLookup(depth=3, paths=2),
}
GREEDY = Sampling(temperature=0.0, max_new_tokens=LENGTH)
HOT = Sampling(temperature=0.9, seed=3, max_new_tokens=LENGTH)
OPTIONS = {
    "greedy": GREEDY,
    "sampled": HOT,
    "truncated": dataclasses.replace(HOT, top_k=9, top_p=0.9, min_p=0.01),
    "biased": dataclasses.replace(GREEDY, logit_bias={97: 5.0, 98: -9.0}),
    "repetition": dataclasses.replace(HOT, repetition_penalty=1.3),
    "penalties": dataclasses.replace(HOT, presence_penalty=0.7, frequency_penalty=-0.4),
    "stop strings": dataclasses.replace(HOT, stop=("a", "t", "3s")),
    "stop tokens": dataclasses.replace(HOT, stop_token_ids=(97, 98, 99, 100)),
    "ignored ends": dataclasses.replace(HOT, ignore_eos=True),
    "log-probabilities": dataclasses.replace(HOT, logprobs=3),
}
USES = ("plain", "streamed", "priority", "pinned")
PAGES = 32
"""Of the 64 that the capacity says: requests give way to each other."""


class SmallEngine(Engine):
    """An engine that is short of pages, and compiles nothing new."""

    def _create_runner(self, model) -> Runner:
        runner = TightRunner(model, self.method)
        runner.free = {"num_free_pages": PAGES, "num_free_nodes": CAPACITY.nodes}
        return runner


@functools.cache
def small_engine() -> Engine:
    return SmallEngine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)


def shape(tree) -> list[tuple]:
    """Return what a tree is, the order of its log-probabilities included."""
    return [
        (
            node.parent,
            node.tokens,
            node.text,
            node.finish_reason,
            [[token for token, _ in tops] for tops in node.top_logprobs],
        )
        for node in tree.nodes
    ]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_option_in_every_use_gives_what_it_gives_alone(name: str, monkeypatch):
    monkeypatch.setattr(eviction, "RESERVE_TOKENS", 8)
    strategy, engine = STRATEGIES[name], small_engine()
    jobs = []
    for number, (option, sampling) in enumerate(OPTIONS.items()):
        if name != "best-of-n":
            # All want them, so that each strategy has one program.
            sampling = dataclasses.replace(sampling, logprobs=3)
        for offset, use in enumerate(USES):
            prompt = PROMPTS[(number + offset) % len(PROMPTS)]
            told: dict[int, list[int]] = defaultdict(list)

            def note(event, told=told):
                told[event.node].append(event.token)

            handle = engine.submit(
                prompt,
                strategy,
                sampling,
                priority=offset if use == "priority" else 0,
                pin=use == "pinned",
                on_token=note if use == "streamed" else None,
            )
            jobs.append((option, use, prompt, sampling, handle, told))
    for option, use, prompt, sampling, handle, told in jobs:
        tree = handle.result(300)
        if handle.pin is not None:
            engine.unpin(handle.pin)
        (alone,) = tiny_engine().generate(prompt, strategy, sampling)
        assert shape(tree) == shape(alone), (option, use)
        assert tree.notice is None
        if use == "streamed":
            generated = {n.id: list(n.tokens) for n in tree.nodes[1:] if n.tokens}
            assert dict(told) == generated, option
    engine.clear_cache()
    assert engine.state.tree.num_free_pages == PAGES


def test_requests_did_give_way_to_each_other():
    """Of the tests above, which need not all have run."""
    statistics = small_engine().statistics()
    assert statistics["requests"] < 40 or statistics["preempted"] > 0
