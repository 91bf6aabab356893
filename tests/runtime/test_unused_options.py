"""What no request asks for is no part of the decode loop."""

import dataclasses
import re

import jax
import pytest

from deft_jax.engine.kept_programs import kept_path
from deft_jax.engine.runner import Runner, no_turn
from deft_jax.runtime.attention_method import TreeMethod
from deft_jax.runtime.step import decode
from deft_jax.sampling.params import MAX_LOGPROBS, Sampling
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies.parallel import ContinueAll
from tests.support.tiny_model import CAPACITY, EOS, tiny_model

PLAIN = Sampling(temperature=0.0)
OTHER = Sampling(presence_penalty=1.0, stop_token_ids=(7,), frequency_penalty=0.5)
RICH = Sampling(logprobs=1)


def arguments(sampling):
    """Return what the decode loop takes for one request."""
    runner, planner = Runner(tiny_model(), TreeMethod()), ContinueAll()
    runner.prepare(CAPACITY)
    runner.start_planner(planner)
    state = dataclasses.replace(runner.state, planner=runner.planner_state(planner))
    free = CAPACITY.requests - 1
    table = make_request_table([sampling, *[None] * free], [9, *[None] * free], EOS)
    return runner.model, state, table, no_turn(CAPACITY, planner)


def step(*args):
    return decode(*args, planner=ContinueAll(), method=TreeMethod())


def traced(sampling):
    """Return the decode loop as text, without the addresses of functions."""
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(step)(*arguments(sampling))))


def test_the_loop_is_the_same_whatever_else_is_asked_for():
    assert traced(OTHER) == traced(PLAIN)


def test_likely_tokens_are_looked_for_only_if_they_are_wanted():
    plain, rich = traced(PLAIN), traced(RICH)
    assert (plain.count(" top_k["), rich.count(" top_k[")) == (0, 2)
    assert rich.count(" sort[") == plain.count(" sort[") + 1


def test_the_report_has_likely_tokens_only_if_they_are_wanted():
    (_, plain), (_, rich) = (
        jax.eval_shape(step, *arguments(sampling)) for sampling in (PLAIN, RICH)
    )
    assert plain.tops == ()
    steps, _, rows = plain.log.shape
    assert rich.tops.shape == (steps, 1 + 2 * MAX_LOGPROBS, rows)


def test_kept_programs_with_and_without_likely_tokens_are_two(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DEFT_JAX_CACHE", str(tmp_path))
    paths = [
        kept_path("decode", (TreeMethod(), ContinueAll()), arguments(sampling))
        for sampling in (PLAIN, OTHER, RICH)
    ]
    assert None not in paths
    assert paths[0] == paths[1] != paths[2]
