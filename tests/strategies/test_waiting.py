"""Requests that wait for scores of the host: right, and in nobody's way."""

import threading
import time

import pytest

from deft_jax.engine.decode_loop import DecodeLoop
from deft_jax.errors import DeftError
from deft_jax.sampling.params import Sampling
from deft_jax.strategies import BestOfN, check_planner, checked
from tests.support.strategies.host_scored import HostScored, Rounds
from tests.support.tiny_model import CAPACITY, decode_alone, tiny_engine

PROMPT = "Who is best?"
SAMPLING = Sampling(temperature=0.9, max_new_tokens=14, ignore_eos=True)


def alone(branches, sampling=SAMPLING):
    return [decode_alone(PROMPT, sampling, i).tokens for i in branches]


def by_id(tree):
    """Score leaves by their ids, so that the last of the branches goes each time."""
    return {leaf.id: -float(leaf.id) for leaf in tree.leaves()}


def test_the_branches_that_the_host_ranks_last_go():
    seen = []

    def score(tree):
        seen.append([len(leaf.tokens) for leaf in tree.leaves()])
        return by_id(tree)

    (tree,) = tiny_engine().generate(PROMPT, HostScored(4, 4, score), SAMPLING)
    assert seen == [[4] * 4, [8, 8, 8, 4], [12, 12, 8, 4]]
    leaves, texts = tree.leaves(), alone(range(4))
    assert [len(leaf.tokens) for leaf in leaves] == [14, 12, 8, 4]
    for leaf, text in zip(leaves, texts, strict=True):
        assert leaf.tokens == text[: len(leaf.tokens)]
        assert leaf.score == -leaf.id
    assert tree.best() == leaves[0]


def test_equal_scores_and_none_at_all():
    strategy = HostScored(3, 4, lambda tree: {leaf.id: 0.5 for leaf in tree.leaves()})
    (tree,) = tiny_engine().generate(PROMPT, strategy, SAMPLING)
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [14, 8, 4]
    (tree,) = tiny_engine().generate(PROMPT, HostScored(3, 4, lambda _: {}), SAMPLING)
    assert [leaf.tokens for leaf in tree.leaves()] == alone(range(3))
    assert all(leaf.score is None for leaf in tree.leaves())


def test_others_go_on_while_one_waits():
    engine, goes_on = tiny_engine(), threading.Event()

    def score(tree):
        assert goes_on.wait(300)
        return by_id(tree)

    waits = engine.submit(PROMPT, HostScored(3, 4, score), SAMPLING)
    others = [engine.submit(PROMPT, BestOfN(2), SAMPLING) for _ in range(2)]
    for handle in others:
        leaves = handle.result(300).leaves()
        assert [leaf.tokens for leaf in leaves] == alone(range(2))
    same = engine.submit(PROMPT, HostScored(2, 4, by_id), SAMPLING)
    assert [len(x.tokens) for x in same.result(300).leaves()] == [14, 4]
    assert not waits.done()
    goes_on.set()
    leaves = waits.result(300).leaves()
    for leaf, text in zip(leaves, alone(range(3)), strict=True):
        assert leaf.tokens == text[: len(leaf.tokens)]
    assert [len(leaf.tokens) for leaf in leaves] == [14, 8, 4]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5], "must return a mapping from ids of nodes to scores, got list"),
        ({99: 0.5}, "scores node 99; the tree has the nodes 0 to 3"),
        ({1: float("nan")}, "gives node 1 the score nan; it must be finite"),
        (ZeroDivisionError("no scorer"), "no scorer"),
    ],
)
def test_an_evaluation_that_fails_ends_its_own_call(scores, message):
    def fail(tree):
        if isinstance(scores, Exception):
            raise scores
        return scores

    engine = tiny_engine()
    other = engine.submit(PROMPT, BestOfN(2), SAMPLING)
    kind = type(scores) if isinstance(scores, Exception) else DeftError
    with pytest.raises(kind, match=message):
        engine.generate(PROMPT, HostScored(3, 4, fail), SAMPLING)
    assert [x.tokens for x in other.result(300).leaves()] == alone(range(2))
    (tree,) = engine.generate(PROMPT, HostScored(2, 4, by_id), SAMPLING)
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [14, 4]


def test_a_request_that_waits_can_be_cancelled():
    engine, begun, ends = tiny_engine(), threading.Event(), threading.Event()

    def score(tree):
        begun.set()
        ends.wait(300)
        return by_id(tree)

    handle = engine.submit(PROMPT, HostScored(3, 4, score), SAMPLING)
    assert begun.wait(300)
    handle.cancel()
    leaves = handle.result(300).leaves()
    assert [leaf.finish_reason for leaf in leaves] == ["interrupted"] * 3
    assert [len(leaf.tokens) for leaf in leaves] == [4] * 3
    ends.set()
    (tree,) = engine.generate(PROMPT, HostScored(2, 4, by_id), SAMPLING)
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [14, 4]


def test_the_loop_does_not_spin_while_all_wait(monkeypatch):
    turns, turn = [], DecodeLoop.turn
    monkeypatch.setattr(DecodeLoop, "turn", lambda self: (turns.append(0), turn(self)))

    def score(tree):
        begin = len(turns)
        time.sleep(0.5)
        assert len(turns) - begin < 50
        return by_id(tree)

    (tree,) = tiny_engine().generate(PROMPT, HostScored(2, 4, score), SAMPLING)
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [14, 4]


def test_plans_that_wait_are_checked():
    check_planner(Rounds(4), CAPACITY)
    (tree,) = tiny_engine().generate(PROMPT, checked(HostScored(3, 4, by_id)), SAMPLING)
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [14, 8, 4]
