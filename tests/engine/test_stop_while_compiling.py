"""A request to stop does not wait for a program that is still being compiled."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from deft_jax.engine.engine import Engine
from deft_jax.engine.programs import Programs, StopRequested
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.tiny_model import CAPACITY, AsciiTokenizer, decode_alone, tiny_model

GREEDY = Sampling(temperature=0.0, max_new_tokens=6, ignore_eos=True)
DEADLINE_S = 2.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Return an event that no thread waits for any longer when the test is over."""
    gate = threading.Event()
    yield gate
    gate.set()


def hold(monkeypatch, gate: threading.Event, index: int) -> None:
    """Let the program that is begun as number `index` wait for a gate."""
    begun, start = [], Programs.start

    def slow(self, key, make):
        is_held = len(begun) == index
        begun.append(key)

        def wait_and_make():
            assert not is_held or gate.wait(60)
            return make()

        start(self, key, wait_and_make)

    monkeypatch.setattr(Programs, "start", slow)


@pytest.mark.parametrize(("index", "step"), [(0, "prefill"), (1, "decode")])
def test_a_stop_ends_the_call_and_spoils_nothing(monkeypatch, gate, index, step):
    hold(monkeypatch, gate, index)
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)
    prompts, asked_at, seen = ["Hello", "other"], [], []
    engine.compile_ahead(prompts, BestOfN(2), GREEDY)

    def note(status):
        seen.append(status.message)
        if status.message == f"preparing the {step} step":
            asked_at.append(time.monotonic())

    trees = engine.generate(
        prompts,
        BestOfN(2),
        GREEDY,
        on_status=note,
        should_stop=lambda: bool(asked_at),
    )
    assert time.monotonic() - asked_at[0] < DEADLINE_S
    assert not any(message.startswith(f"compiled the {step}") for message in seen)
    for tree in trees:
        assert [leaf.finish_reason for leaf in tree.leaves()] == ["interrupted"]
    gate.set()
    for tree, prompt in zip(
        engine.generate(prompts, BestOfN(2), GREEDY), prompts, strict=True
    ):
        assert tree.best().tokens == decode_alone(prompt, GREEDY).tokens
    again = engine.generate(prompts, BestOfN(2), GREEDY, should_stop=lambda: False)
    assert len(again[0].leaves()) == 2


def test_a_reading_that_is_cancelled_while_its_program_is_made_has_no_result(
    monkeypatch, gate
):
    hold(monkeypatch, gate, 0)
    waits, get = threading.Event(), Programs.get

    def note(self, key, *args):
        waits.set()
        return get(self, key, *args)

    monkeypatch.setattr(Programs, "get", note)
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)
    engine.compile_ahead("Hello", BestOfN(2), GREEDY)
    handle = engine.read("Hello")
    assert waits.wait(60)
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(60)


def test_a_program_is_asked_for_until_it_is_made_or_no_longer_wanted(gate):
    programs, answers = Programs(), iter([False, False, True])
    programs.start("step", lambda: gate.wait(60))
    with pytest.raises(StopRequested):
        programs.get("step", lambda: next(answers))
    assert next(answers, None) is None
    gate.set()
    assert programs.get("step", lambda: next(answers, False)) is True
    assert programs.get("another", lambda: True) is None


def test_a_failure_is_raised_though_a_stop_was_asked_for():
    def fail():
        raise ZeroDivisionError

    programs = Programs()
    programs.start("step", fail)
    with pytest.raises(ZeroDivisionError):
        programs.get("step")
    assert programs.get("step", lambda: True) is None


def test_what_cannot_be_is_refused_by_the_call_that_compiles_ahead():
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)
    with pytest.raises(ValueError, match="leaves no room for an answer"):
        engine.compile_ahead("a" * 128, BestOfN(2), GREEDY)
    [tree] = engine.generate("Hello", BestOfN(2), GREEDY)
    assert tree.best().tokens == decode_alone("Hello", GREEDY).tokens
