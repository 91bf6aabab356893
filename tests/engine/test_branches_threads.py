"""Branches of several threads of one engine, and sessions that end meanwhile."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deft_jax import DeftError, Sampling, Session
from tests.support.branch_mirror import Mirror
from tests.support.counted_engine import CountedEngine, StoppedEngine
from tests.support.tiny_model import sharing_engine

PROMPT = "The quick brown fox"
SAMPLING = Sampling(temperature=0.9, max_new_tokens=8)


def program(session: Session, name: str) -> None:
    """Grow branches below a prompt; each must be what its sequence is."""
    prompt = f"{name} {PROMPT}"
    root, mirror = session.open(prompt), Mirror.of(prompt)
    for seed in range(3):
        sampling = dataclasses.replace(SAMPLING, seed=seed)
        group = root.fork(2).generate(sampling).extend(name * 3)
        mirrors = [mirror.fork() for _ in range(2)]
        for branch, each in zip(group, mirrors, strict=True):
            each.generate(sampling)
            each.extend(name * 3)
            each.check(branch)
        group.choose(["a", "b"])


def test_threads_share_a_session():
    counted = CountedEngine(sharing_engine())
    with Session(counted) as session, ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(program, session, name) for name in "abcd"]:
            future.result(300)
    assert counted.num_pinned == 0


def test_each_thread_has_a_session():
    def own_session(name: str) -> None:
        with sharing_engine().session() as session:
            program(session, name)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(own_session, name) for name in "abc"]:
            future.result(300)


def test_two_threads_cannot_grow_one_branch():
    results: list[str] = []
    barrier = threading.Barrier(4)

    def grow(branch) -> None:
        barrier.wait(30)
        try:
            branch.generate(SAMPLING)
            results.append("grown")
        except DeftError as error:
            results.append(str(error).split(";")[0])

    with sharing_engine().session() as session, ThreadPoolExecutor(4) as pool:
        branch = session.open(PROMPT)
        mirror = Mirror.of(PROMPT)
        for future in [pool.submit(grow, branch) for _ in range(4)]:
            future.result(300)
        for _ in range(results.count("grown")):
            mirror.generate(SAMPLING)
        mirror.check(branch)
    assert set(results) <= {"grown", "the branch is growing"} and "grown" in results


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda session, branch: session.close(), "the session was closed before"),
        (lambda session, branch: branch.drop(), "the branch was dropped while"),
    ],
)
def test_what_ends_while_a_thread_waits(end, message: str):
    counted = CountedEngine(sharing_engine())
    with Session(counted) as session, Session(sharing_engine()) as other:
        group = session.open(PROMPT).fork(2)
        texts = group.path_text()
        with StoppedEngine(other) as stopped, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(group.generate, SAMPLING)
            while counted.log.count("submit") < 2:
                assert not waiting.done()
            end(session, group[0])
            stopped.go_on()
            with pytest.raises(DeftError, match=message):
                waiting.result(300)
        assert group.path_text() == texts
        if not session._state.is_closed:
            assert len(group[1].generate(SAMPLING).tokens) > 0
    assert counted.num_pinned == 0
