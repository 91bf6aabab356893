"""A request to stop while prompts are fed ends the call without a decode step."""

import pytest

from deft_jax.engine import runner
from deft_jax.engine.engine import Engine
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.tiny_model import CAPACITY, AsciiTokenizer, tiny_model

GREEDY = Sampling(temperature=0.0, max_new_tokens=4, ignore_eos=True)


@pytest.fixture
def engine() -> Engine:
    """Return an engine of this test alone."""
    return Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)


def test_nothing_is_decoded_behind_a_stop(engine: Engine, monkeypatch):
    def fail(*arguments):
        raise AssertionError("a decode step ran")

    prompt, fed = "a" * 100, []
    with monkeypatch.context() as patched:
        patched.setattr(runner.Runner, "decode", fail)
        trees = engine.generate(
            [prompt, "b", "c", "d"],
            BestOfN(2),
            GREEDY,
            on_status=lambda status: fed.append(status.prompt_tokens_done),
            should_stop=lambda: max(fed, default=0) > 0,
        )
    assert max(fed) == CAPACITY.chunk  # One chunk of several.
    for tree in trees:
        assert [leaf.finish_reason for leaf in tree.leaves()] == ["interrupted"]
        assert tree.stats.generated_tokens == 0
    again, first = (
        e.generate(prompt, BestOfN(2), GREEDY)[0].leaves()
        for e in (engine, Engine(engine.model, engine.tokenizer, capacity=CAPACITY))
    )
    assert again == first
