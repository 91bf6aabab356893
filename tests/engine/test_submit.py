"""Requests that come and go: threads, coroutines, listeners, ends, priorities."""

import asyncio
import json
import random
import threading
from collections import defaultdict
from typing import Any

import pytest

from deft_jax.engine.engine import Engine
from deft_jax.errors import DeftError
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from tests.support.tiny_model import (
    CAPACITY,
    AsciiTokenizer,
    decode_alone,
    tiny_model,
)

GREEDY = Sampling(temperature=0.0, max_new_tokens=10, ignore_eos=True)
LONG = Sampling(temperature=0.9, max_new_tokens=80, ignore_eos=True, seed=5)
WAIT_S = 300


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)


def check(tree, sampling: Sampling, key: int = ROOT_KEY) -> None:
    """Check every branch against itself alone, or its beginning if it was cut off."""
    for branch, leaf in enumerate(tree.leaves()):
        if leaf.parent is None:
            continue
        alone = decode_alone(tree.prompt, sampling, branch, key=key)
        if leaf.finish_reason == "interrupted":
            assert leaf.tokens == alone.tokens[: len(leaf.tokens)]
        else:
            assert (leaf.tokens, leaf.finish_reason) == alone[:1] + alone[3:]


def test_requests_with_samplings_and_strategies_of_their_own_run_together(engine):
    jobs: list[tuple[str, Any, Sampling]] = [
        ("Hello", BestOfN(2), LONG),
        ("Hello world", BestOfN(1), GREEDY),
        ("x", BestOfN(3), Sampling(max_new_tokens=30, seed=9, top_k=5)),
        ("abc", BeamSearch(width=2, length=8), GREEDY),
        ("12345", BestOfN(1), Sampling(max_new_tokens=20, stop=("a", "b"), seed=2)),
        ("yz", BeamSearch(width=3, length=8), GREEDY),
    ]
    handles = [engine.submit(*job) for job in jobs]
    trees = [handle.result(WAIT_S) for handle in handles]
    for (prompt, strategy, sampling), tree in zip(jobs, trees, strict=True):
        if isinstance(strategy, BestOfN):
            check(tree, sampling)
        else:
            (alone,) = engine.generate(prompt, strategy, sampling)
            assert [n.tokens for n in tree.nodes] == [n.tokens for n in alone.nodes]
    engine.state.tree.check()


def test_a_key_names_what_is_drawn(engine):
    for key in (0, 7, 2**32 - 1):
        check(
            engine.submit("Hello", BestOfN(2), LONG, key=key).result(WAIT_S), LONG, key
        )


def test_many_threads_submit_and_cancel_and_nothing_is_lost(engine):
    """16 threads of 10 requests each; a third of them is cancelled at random."""
    errors: list[BaseException] = []
    done = []

    def work(number: int) -> None:
        draw = random.Random(number)
        try:
            for index in range(10):
                # None of them has two first tokens that only rounding tells apart.
                prompt = "The quick brown fox jumps"[: draw.randint(1, 25)]
                prompt += "ABCDEFGHIJ"[index]
                sampling = Sampling(
                    temperature=draw.choice([0.0, 0.9]),
                    max_new_tokens=draw.choice([1, 8, 25]),
                    seed=draw.randint(0, 3),
                    ignore_eos=True,
                )
                handle = engine.submit(prompt, BestOfN(draw.choice([1, 2])), sampling)
                is_cancelled = draw.random() < 0.33
                if is_cancelled:
                    handle.cancel()
                tree = handle.result(WAIT_S)
                check(tree, sampling)
                reasons = {leaf.finish_reason for leaf in tree.leaves()}
                assert is_cancelled or "interrupted" not in reasons
                done.append(tree)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(done) == 160
    engine.clear_cache()
    assert engine.state.tree.num_free_pages == CAPACITY.pages
    assert engine.state.tree.num_free_nodes == CAPACITY.nodes


def test_a_call_and_submitted_requests_run_beside_each_other(engine):
    handle = engine.submit("Hello", sampling=LONG)
    trees = engine.generate(["abc", "x"], BestOfN(2), GREEDY)
    for tree in trees:
        check(tree, GREEDY)
    check(handle.result(WAIT_S), LONG)


def test_tokens_are_iterated_as_they_come(engine):
    handle = engine.submit("Hello", BestOfN(2), LONG)
    told = defaultdict(list)
    for event in handle:
        told[event.node].append(event.token)
    tree = handle.result(0)
    check(tree, LONG)
    for leaf in tree.leaves():
        # Those that came before the iteration began are not told.
        assert told[leaf.id] == list(
            leaf.tokens[len(leaf.tokens) - len(told[leaf.id]) :]
        )
    assert list(handle) == []


def test_coroutines_wait_iterate_and_cancel(engine):
    async def listen() -> list[int]:
        handle = engine.submit("Hello", sampling=LONG)
        tokens = [event.token async for event in handle]
        check(await handle, LONG)
        return tokens

    async def wait(prompt: str):
        return await engine.submit(prompt, sampling=GREEDY)

    async def main() -> None:
        results = await asyncio.gather(listen(), wait("abc"), wait("x"))
        for tree in results[1:]:
            check(tree, GREEDY)
        handle = engine.submit("Hello", sampling=LONG)
        task = asyncio.ensure_future(_await(handle))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        tree = await handle
        check(tree, LONG)
        assert tree.best().finish_reason == "interrupted"

    asyncio.run(main())


async def _await(handle):
    return await handle


def test_a_callback_may_submit_and_may_not_wait(engine):
    handles, errors = [], []

    def on_token(event):
        if not handles:
            handles.append(engine.submit("abc", sampling=GREEDY))
            for wait in (handles[0].result, lambda: engine.generate("x")):
                try:
                    wait()
                except DeftError as error:
                    errors.append(str(error))

    check(
        engine.submit("Hello", sampling=GREEDY, on_token=on_token).result(WAIT_S),
        GREEDY,
    )
    check(handles[0].result(WAIT_S), GREEDY)
    assert len(errors) == 2
    assert all("waits for a request of the same engine" in error for error in errors)


def test_a_listener_that_fails_ends_its_own_request_alone(engine):
    def fail(event):
        raise ZeroDivisionError("from the listener")

    other = engine.submit("Hello", sampling=LONG)
    bad = engine.submit("abc", sampling=LONG, on_token=fail)
    with pytest.raises(ZeroDivisionError, match="from the listener"):
        bad.result(WAIT_S)
    check(other.result(WAIT_S), LONG)


def test_a_done_callback_hears_of_the_end(engine):
    heard = threading.Event()
    handle = engine.submit("abc", sampling=GREEDY)
    handle.add_done_callback(lambda it: heard.set() if it is handle else None)
    assert heard.wait(WAIT_S) and handle.done()
    with pytest.raises(TimeoutError):
        engine.submit("Hello", sampling=LONG).result(0)


def test_higher_priorities_start_first(tmp_path):
    """The first request has all rows, so that the others wait."""
    events = tmp_path / "events.jsonl"
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY, event_log=events)
    blocker = engine.submit("Hello", BestOfN(16), LONG)
    handles = []
    for prompt, priority in (("a", 0), ("bb", 2), ("ccc", 1), ("dddd", 2)):
        handles.append(engine.submit(prompt, BestOfN(9), GREEDY, priority=priority))
    blocker.cancel()
    for handle in handles:
        check(handle.result(WAIT_S), GREEDY)
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    looked_up = [line["tokens"] for line in lines if line["kind"] == "look up"]
    assert [count for count in looked_up if count != 5] == [2, 4, 3, 1]
    kinds = {line["kind"] for line in lines}
    assert kinds >= {"submit", "start", "look up", "feed", "burst", "finish"}
