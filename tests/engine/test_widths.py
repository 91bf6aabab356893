"""Steps and chunks that cost what runs, not what the capacity is."""

from collections import Counter

import pytest

from deft_jax.capacity import Capacity
from deft_jax.engine import bursts, widths
from deft_jax.engine.engine import Engine
from deft_jax.engine.pace import Pace
from deft_jax.engine.runner import Runner
from deft_jax.engine.widths import choose_width, chunk_widths, row_widths
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from tests.support.tiny_model import AsciiTokenizer, decode_alone, tiny_model

CAPACITY = Capacity(requests=4, rows=16, nodes=96, pages=64, page_size=8, chunk=32)
SAMPLING = Sampling(temperature=0.9, max_new_tokens=24, seed=7)
"""Branches end at many lengths."""


class WatchedRunner(Runner):
    """Counts what was run by its width."""

    def __init__(self, model, method):
        super().__init__(model, method)
        self.steps, self.chunks = Counter(), Counter()

    def decode(self, table, turn, planner, width):
        if turn.max_steps:
            self.steps[width] += 1
        return super().decode(table, turn, planner, width)

    def feed(self, chunk, question=None):
        self.chunks[len(chunk.token)] += 1
        return super().feed(chunk, question)


class WatchedEngine(Engine):
    runner: WatchedRunner

    def _create_runner(self, model) -> Runner:
        return WatchedRunner(model, self.method)


@pytest.fixture
def engine(monkeypatch) -> WatchedEngine:
    """Return an engine with the widths that users have; none is too dear to make."""
    monkeypatch.setattr(widths, "ROWS", (1, 4, 16, 64, 256))
    monkeypatch.setattr(widths, "TOKENS", (16, 64))
    monkeypatch.setattr(bursts, "WORTH_S", -1.0)
    return WatchedEngine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)


def test_the_widths_of_a_capacity():
    large = Capacity(requests=4, rows=40, nodes=96, pages=64, chunk=256)
    widths_now = widths.ROWS, widths.TOKENS
    try:
        widths.ROWS, widths.TOKENS = (1, 4, 16, 64, 256), (16, 64)
        assert row_widths(large) == [1, 4, 16, 40]
        assert chunk_widths(large) == [16, 64, 256]
        small = Capacity(requests=4, rows=1, nodes=96, pages=64, chunk=16)
        assert (row_widths(small), chunk_widths(small)) == ([1], [16])
    finally:
        widths.ROWS, widths.TOKENS = widths_now


def test_the_least_width_runs_once_it_is_made_and_a_wider_one_until_then():
    ready, begun = {16}, []

    def choose(needed: int) -> int:
        return choose_width(needed, [1, 4, 16, 40], ready.__contains__, begun.append)

    assert choose(3) == 16 and begun == [4]
    ready.add(4)
    assert choose(3) == 4 and begun == [4]
    assert choose(20) == 40 and choose(1) == 4 and begun == [4, 1]


def test_branches_that_end_leave_narrower_steps(engine: WatchedEngine, monkeypatch):
    """16 branches, of which fewer and fewer go on, in rows that move to the front."""
    monkeypatch.setattr(Pace, "steps_within", lambda *_: 2)
    for prompt in ("Hello world", "Hello world", "x", "x", "Hello world"):
        told = []
        (tree,) = engine.generate(prompt, BestOfN(16), SAMPLING, on_token=told.append)
        for branch, leaf in enumerate(tree.leaves()):
            alone = decode_alone(prompt, SAMPLING, branch)
            assert leaf.tokens == alone.tokens
            assert leaf.finish_reason == alone.finish_reason
        engine.runner.ahead.wait()
    assert set(engine.runner.steps) == {4, 16}
    engine.state.tree.check()


def test_rows_that_are_idle_serve_other_requests(engine: WatchedEngine):
    """Of the first 12 branches some end early: 8 others start before all have."""
    jobs = [("Hello world", 12), ("x", 8), ("abc", 2), ("12345678", 3)]
    handles = [engine.submit(prompt, BestOfN(n), SAMPLING) for prompt, n in jobs]
    for (prompt, _), handle in zip(jobs, handles, strict=True):
        for branch, leaf in enumerate(handle.result(300).leaves()):
            assert leaf.tokens == decode_alone(prompt, SAMPLING, branch).tokens


def test_a_strategy_with_rows_of_its_own_keeps_them(engine: WatchedEngine):
    beams = BeamSearch(width=3, length=8)
    greedy = Sampling(temperature=0.0, max_new_tokens=8, ignore_eos=True)
    (alone,) = engine.generate("abc", beams, greedy)
    handles = [
        engine.submit("Hello", BestOfN(7), SAMPLING),
        engine.submit("abc", beams, greedy),
        engine.submit("x", BestOfN(5), SAMPLING),
    ]
    trees = [handle.result(300) for handle in handles]
    assert [n.tokens for n in trees[1].nodes] == [n.tokens for n in alone.nodes]
    for prompt, tree in (("Hello", trees[0]), ("x", trees[2])):
        for branch, leaf in enumerate(tree.leaves()):
            assert leaf.tokens == decode_alone(prompt, SAMPLING, branch).tokens


def test_few_new_tokens_are_fed_in_a_short_chunk(engine: WatchedEngine):
    greedy = Sampling(temperature=0.0, max_new_tokens=4, ignore_eos=True)
    prompt = "The quick brown fox jumps over the lazy dog."
    engine.generate(prompt, sampling=greedy)
    for number in range(4):
        text = f"{prompt} {number}"
        (tree,) = engine.generate(text, sampling=greedy)
        assert tree.best().tokens == decode_alone(text, greedy).tokens
        # The first ran in the wide chunk, behind which the short one was made.
        engine.runner.ahead.wait()
    assert engine.runner.chunks[16] >= 1 and engine.runner.chunks[32] >= 2
