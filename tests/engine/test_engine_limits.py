"""Generations that do not run to their end: full pools, interrupts, exceptions."""

from typing import Any

import pytest

from deft_jax.engine.log_replay import LogReplay
from deft_jax.engine.pace import Pace
from deft_jax.engine.runner import Runner
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.tiny_model import (
    CAPACITY,
    EOS,
    AsciiTokenizer,
    decode_alone,
    tiny_engine,
)

ENDLESS = Sampling(temperature=0.9, max_new_tokens=100, ignore_eos=True, seed=5)


def assert_idle():
    """Assert that the engine holds nothing, and gives the right tokens."""
    greedy = Sampling(temperature=0.0, max_new_tokens=10)
    (tree,) = tiny_engine().generate("Hello world", sampling=greedy)
    assert tree.best().tokens == decode_alone("Hello world", greedy).tokens
    state = tiny_engine().state
    assert state.tree.num_free_pages == CAPACITY.pages
    assert state.tree.num_free_nodes == CAPACITY.nodes
    assert not state.tree.live.any()
    assert (state.roots == CAPACITY.nodes).all()
    assert (state.rows.node == CAPACITY.nodes).all()


def assert_prefixes(tree, sampling):
    """Assert that every branch is the beginning of what it would have been."""
    for stream, leaf in enumerate(tree.leaves()):
        alone = decode_alone(tree.prompt, sampling, stream).tokens
        assert leaf.tokens == alone[: len(leaf.tokens)]


def test_a_full_pool_keeps_what_is_done_and_says_so():
    """8 branches of one prompt page fill 64 pages when each has 7: 56 tokens."""
    trees = tiny_engine().generate(["12345", "abc"], BestOfN(8), ENDLESS)
    for tree in trees:
        assert_prefixes(tree, ENDLESS)
        assert [len(leaf.tokens) for leaf in tree.leaves()] == [56] * 8
        assert {leaf.finish_reason for leaf in tree.leaves()} == {"capacity"}
        assert tree.notice is not None and "\n" not in tree.notice
        assert "64 pages of 8 tokens and 96 nodes" in tree.notice
    assert "after 448 tokens" in str(trees[0].notice)
    assert "after 896 tokens" in str(trees[1].notice)
    assert_idle()


def test_branches_that_ended_before_the_pool_was_full_stay_as_they_are():
    """The other 7 fill 64 pages when each has 9: 72 tokens."""
    stop = AsciiTokenizer().decode(
        decode_alone("12345", ENDLESS, 3).tokens[10:13], skip_special_tokens=True
    )
    sampling = Sampling(**{**vars(ENDLESS), "stop": (stop,)})
    (tree,) = tiny_engine().generate("12345", BestOfN(8), sampling)
    assert_prefixes(tree, sampling)
    reasons = [leaf.finish_reason for leaf in tree.leaves()]
    assert reasons == ["capacity"] * 3 + ["stop"] + ["capacity"] * 4
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [
        13 if leaf.finish_reason == "stop" else 72 for leaf in tree.leaves()
    ]
    assert_idle()


def test_a_stop_string_in_the_burst_that_fills_the_pool_makes_room():
    """The burst that needs page 65 for token 57 of 8 branches began with token 54."""
    alone = decode_alone("12345", ENDLESS, 3).tokens
    assert not set(alone[53:55]) & set(EOS)
    stop = "".join(map(chr, alone[53:55]))
    sampling = Sampling(**{**vars(ENDLESS), "stop": (stop,), "max_new_tokens": 60})
    (tree,) = tiny_engine().generate("12345", BestOfN(8), sampling)
    assert_prefixes(tree, sampling)
    reasons = [leaf.finish_reason for leaf in tree.leaves()]
    assert reasons == ["length"] * 3 + ["stop"] + ["length"] * 4
    assert tree.notice is None
    assert_idle()


def test_should_stop_keeps_what_is_done():
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > 4

    prompts = ["12345", "abc", "x", "has to wait"]
    trees = tiny_engine().generate(
        prompts, BestOfN(2), ENDLESS, should_stop=should_stop
    )
    for tree in trees[:3]:
        assert_prefixes(tree, ENDLESS)
        assert {leaf.finish_reason for leaf in tree.leaves()} == {"interrupted"}
        assert len({len(leaf.tokens) for leaf in tree.leaves()}) == 1
        assert 0 < len(tree.best().tokens) < 100 and tree.notice is None
    assert [node.text for node in trees[3].nodes] == ["has to wait"]
    assert trees[3].best().finish_reason == "interrupted"
    assert len(asked) == 5
    assert_idle()


def test_an_interrupt_before_the_first_step_gives_the_prompts_alone():
    trees = tiny_engine().generate(["a", "b"], should_stop=lambda: True)
    assert [len(tree.nodes) for tree in trees] == [1, 1]
    assert_idle()


def test_text_held_back_for_a_stop_string_is_in_an_interrupted_branch(monkeypatch):
    monkeypatch.setattr(Pace, "steps_within", lambda *_: 1)
    alone = decode_alone("12345", ENDLESS).tokens
    held = chr(alone[4])
    assert alone[4] not in (*EOS, *alone[:4])
    sampling = Sampling(**{**vars(ENDLESS), "stop": (held + "\x7f\x7f",)})
    events = []
    (tree,) = tiny_engine().generate(
        "12345",
        sampling=sampling,
        on_token=events.append,
        should_stop=lambda: len(events) == 5,
    )
    told = "".join(event.text for event in events)
    assert tree.best().text == told + held
    assert tree.best().tokens == alone[:5]


@pytest.mark.parametrize("listener", ["on_token", "on_status", "should_stop"])
def test_an_exception_of_the_caller_leaves_the_engine_usable(listener):
    calls = []

    def fail(*_) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("from the caller")

    with pytest.raises(RuntimeError, match="from the caller"):
        listeners: dict[str, Any] = {listener: fail}
        tiny_engine().generate(["12345", "abc"], BestOfN(2), ENDLESS, **listeners)
    assert len(calls) == 4
    assert_idle()


def test_an_interrupt_from_the_keyboard_leaves_the_engine_usable():
    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_engine().generate("12345", BestOfN(2), ENDLESS, on_token=interrupt)
    assert_idle()


@pytest.fixture
def calls(monkeypatch):
    """Record what the host does, in order: starting bursts, and replaying them."""
    seen = []
    play, decode = LogReplay.play, Runner.decode

    def noted(name, method):
        def call(*args):
            seen.append(name)
            return method(*args)

        return call

    monkeypatch.setattr(LogReplay, "play", noted("play", play))
    monkeypatch.setattr(Runner, "decode", noted("decode", decode))
    return seen


LONG = Sampling(temperature=0.9, max_new_tokens=90, ignore_eos=True, seed=5)


def test_the_next_burst_is_started_before_one_is_replayed(calls):
    """Bursts of 1, 64 and 25 steps, and one behind the end that has none."""
    (tree,) = tiny_engine().generate("12345", BestOfN(2), LONG)
    assert_prefixes(tree, LONG)
    assert calls[-8:] == ["decode", *["decode", "play"] * 3, "play"]


def test_nothing_is_told_behind_a_stop(calls):
    """The burst that was started before is replayed, and nobody hears of it."""
    told = []
    (tree,) = tiny_engine().generate(
        "12345",
        BestOfN(2),
        LONG,
        on_token=told.append,
        should_stop=lambda: len(told) > 4,
    )
    assert_prefixes(tree, LONG)
    assert len(told) == sum(len(leaf.tokens) for leaf in tree.leaves()) < 180
    assert {leaf.finish_reason for leaf in tree.leaves()} == {"interrupted"}
    assert calls[-2:] == ["play", "play"]


def test_a_replay_that_fails_beside_a_burst_leaves_the_engine_usable(monkeypatch):
    def fail(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LogReplay, "play", fail)
        tiny_engine().generate("12345", BestOfN(2), LONG)
    assert_idle()
