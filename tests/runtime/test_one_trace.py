"""One compilation serves every tree within a capacity."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from deft_jax.engine.runner import run_decode, run_prefill
from deft_jax.results.tree_node import TokenEvent
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN, SelfConsistency
from examples.beam_search import BeamSearch
from tests.support.tiny_model import CAPACITY, tiny_engine

BEAM = BeamSearch(width=2, length=12)
"""Of this file alone, so that it is compiled here whatever other tests ran before."""

PROMPTS = ["x", "Hello world", "12345678", "abc", "The quick brown fox jumps over it."]
OTHERS = ["Something else, and of another length", "yz"]


def num_traces(step: Any) -> int:
    """Shapes and static arguments that a jitted function was traced for."""
    return step._cache_size()


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Programs that XLA compiles, or reads from a cache of compiled programs."""
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(kwargs.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_listener_hears_compilations():
    with compilations() as compiled:
        jax.jit(lambda x: x * 17 + 4)(3.0)
    assert len(compiled) == 1


def test_a_run_that_branches_prunes_finishes_and_refills_compiles_the_step_once():
    engine, before = tiny_engine(), num_traces(run_decode)
    trees = engine.generate(PROMPTS, BEAM, Sampling(max_new_tokens=12))
    leaves = [leaf for tree in trees for leaf in tree.leaves()]
    assert {"pruned", "length", "stop"} == {leaf.finish_reason for leaf in leaves}
    assert len(PROMPTS) > CAPACITY.requests
    assert any(len(tree.path(tree.best())) > 2 for tree in trees)
    assert num_traces(run_decode) == before + 1


def test_other_prompts_and_settings_compile_nothing():
    engine = tiny_engine()
    engine.generate(PROMPTS, BEAM, Sampling(max_new_tokens=12))
    with compilations() as compiled:
        for prompts in (OTHERS, OTHERS[::-1], PROMPTS[:1]):
            engine.generate(prompts, BEAM, Sampling(max_new_tokens=9, seed=4))
            engine.generate(
                prompts,
                BEAM,
                Sampling(
                    max_new_tokens=12,
                    temperature=0.5,
                    top_k=3,
                    repetition_penalty=1.2,
                    presence_penalty=0.5,
                    frequency_penalty=-0.5,
                    logit_bias={5: 1.0},
                    stop=("a",),
                    stop_token_ids=(7, 99),
                ),
                on_token=lambda event: None,
            )
    assert compiled == []


def test_likely_tokens_are_one_program_whatever_their_number():
    engine = tiny_engine()
    engine.generate(PROMPTS, BEAM, Sampling(max_new_tokens=12))
    before = num_traces(run_decode), num_traces(run_prefill)
    engine.generate(PROMPTS, BEAM, Sampling(max_new_tokens=12, logprobs=3))
    assert num_traces(run_decode) == before[0] + 1
    assert num_traces(run_prefill) == before[1]
    with compilations() as compiled:
        for logprobs in (0, 1, 20, 0):
            engine.generate(OTHERS, BEAM, Sampling(logprobs=logprobs, seed=2))
    assert compiled == []


def test_all_numbers_of_branches_share_a_compilation():
    engine = tiny_engine()
    engine.generate(PROMPTS, BestOfN(1), Sampling(max_new_tokens=4))
    with compilations() as compiled:
        for strategy in (BestOfN(2), BestOfN(5), SelfConsistency(3, pattern="a+")):
            engine.generate(OTHERS, strategy, Sampling(max_new_tokens=4))
    assert compiled == []


def test_all_strategies_share_the_prefill():
    engine = tiny_engine()
    engine.generate(PROMPTS, BestOfN(1), Sampling(max_new_tokens=4))
    before = num_traces(run_prefill)
    engine.generate(PROMPTS, BEAM, Sampling(max_new_tokens=4))
    assert num_traces(run_prefill) == before


def test_a_full_pool_and_an_interrupt_compile_nothing():
    engine = tiny_engine()
    endless = Sampling(max_new_tokens=100, ignore_eos=True)
    told: list[TokenEvent] = []
    engine.generate(
        "x",
        BestOfN(8),
        endless,
        on_token=told.append,
        should_stop=lambda: bool(told),
    )
    engine.generate("x", BestOfN(8), endless)
    with compilations() as compiled:
        (full,) = engine.generate("x", BestOfN(8), endless)
        (stopped,) = engine.generate("x", BestOfN(8), endless, should_stop=lambda: True)
    assert full.best().finish_reason == "capacity" and len(stopped.nodes) == 1
    assert compiled == []
