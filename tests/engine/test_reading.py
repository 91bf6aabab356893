"""Prompts that are read and not continued: log-probabilities, likely next tokens."""

import contextlib
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from deft_jax.engine.engine import Engine
from deft_jax.errors import CapacityError, DeftError
from tests.support.tiny_model import (
    CAPACITY,
    AsciiTokenizer,
    path_logprobs,
    tiny_model,
)

TEXT = "The quick brown fox jumps over the lazy dog, twice."
IDS = AsciiTokenizer().encode(TEXT)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)


@pytest.mark.parametrize("score_from", [1, 7, 32, 33, len(TEXT) - 1, len(TEXT)])
def test_scores_are_the_models_whatever_is_cached(engine: Engine, score_from: int):
    """Chunks have 32 tokens; the second time all before the scores is cached."""
    exact = path_logprobs(IDS)
    expected = [exact[at - 1, IDS[at]] for at in range(score_from, len(IDS))]
    for _ in range(2):
        reading = engine.read(TEXT, score_from=score_from, top=5).result(300)
        np.testing.assert_allclose(reading.logprobs, expected, atol=2e-4)
        likely = np.argsort(-exact[-1], kind="stable")[:5]
        assert [token for token, _ in reading.top] == likely.tolist()
        values = [logprob for _, logprob in reading.top]
        np.testing.assert_allclose(values, exact[-1][likely], atol=2e-4)


def test_readings_of_several_prompts_run_together(engine: Engine):
    texts = ["x", "yz" * 20, TEXT[:40] + "!", TEXT]
    handles = [engine.read(text, top=1, score_from=1) for text in texts]
    for text, handle in zip(texts, handles, strict=True):
        exact = path_logprobs(AsciiTokenizer().encode(text))
        reading = handle.result(300)
        assert reading.top[0][0] == int(np.argmax(exact[-1]))
        assert len(reading.logprobs) == len(text) - 1


def test_what_is_read_is_cached_and_pinned_until_it_is_given_back(engine: Engine):
    engine.clear_cache()
    before = engine.statistics()["cached_tokens"]
    handle = engine.read(TEXT, pin=True)
    assert handle.result(300) == ((), ())
    assert handle.pin is not None
    engine.read(TEXT).result(300)
    assert engine.statistics()["cached_tokens"] - before == len(TEXT)
    engine.unpin(handle.pin)
    engine.clear_cache()
    assert engine.state.tree.num_free_pages == CAPACITY.pages


def test_what_cannot_be_asked_is_refused(engine: Engine):
    cases: dict[str, dict[str, Any]] = {
        "top must be from 0 to 20, got 21": {"top": 21},
        "score_from must be from 1 to 51, got 0": {"score_from": 0},
        "score_from must be from 1 to 51, got 52": {"score_from": 52},
    }
    for message, options in cases.items():
        with pytest.raises(DeftError, match=message):
            engine.read(TEXT, **options)
    with pytest.raises(DeftError, match="expected 1 prompt, got 2"):
        engine.read(["a", "b"])  # type: ignore
    with pytest.raises(CapacityError, match="leaves no room"):
        engine.read("x" * 128)


def test_a_pinned_reading_that_is_cancelled_leaves_its_prompt_to_others(
    engine: Engine,
):
    """Whenever it is cancelled: waiting, looked up, half fed or read."""
    for pause in (0.0, 0.001, 0.003, 0.01):
        text = f"{pause}" + TEXT * 2
        handle = engine.read(text, pin=True)
        time.sleep(pause)
        handle.cancel()
        with contextlib.suppress(CancelledError):
            handle.result(300)
        assert engine.read(text, top=1).result(300).top
        if handle.pin is not None:
            engine.unpin(handle.pin)


def test_wrong_arguments_of_one_caller_touch_no_other(engine: Engine):
    running = engine.read(TEXT, score_from=1)
    wrong: list[Any] = [
        lambda: engine.unpin(None),  # type: ignore
        lambda: engine.submit("x", key=-1),
        lambda: engine.submit("x", priority="high"),  # type: ignore
        lambda: engine.read("xy", score_from="1"),  # type: ignore
    ]
    for call in wrong:
        with pytest.raises(DeftError):
            call()
    assert len(running.result(300).logprobs) == len(TEXT) - 1
