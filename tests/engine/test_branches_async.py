"""Branches of coroutines: the same results, in the same steps, and cancelled tasks."""

import asyncio

import pytest

from deft_jax import BestOfN, DeftError, Sampling, Session
from tests.support.counted_engine import CountedEngine, StoppedEngine
from tests.support.tiny_model import sharing_engine

PROMPT = "The quick brown fox"
SAMPLING = Sampling(temperature=0.9, seed=2, max_new_tokens=8, ignore_eos=True)


def counted_session() -> tuple[Session, CountedEngine]:
    counted = CountedEngine(sharing_engine())
    return Session(counted, sampling=SAMPLING), counted


def test_every_operation_gives_what_the_waiting_one_gives():
    async def program() -> list:
        async with Session(sharing_engine(), sampling=SAMPLING) as session:
            root = await session.aopen(PROMPT)
            assert await root.aextend("!") is root
            forks = root.fork(2)
            assert await forks.agenerate() is forks
            assert await (await forks.aextend("?"))[0].agenerate() is forks[0]
            leaves = await root.agenerate(strategy=BestOfN(2))
            below = await leaves.agenerate(strategy=BestOfN(2), max_new_tokens=3)
            several = await session.aopen_all([PROMPT, "x"])
            return [
                forks.text,
                leaves.text,
                below.path_text(),
                await root.ascore(["a", "bc"]),
                await root.ascore_tokens(["a", "bc"]),
                await root.achoose(["a", "bc"]),
                await root.alogprobs(3),
                await forks.ascore(["a", "bc"]),
                await forks.ascore_tokens(["a", "bc"]),
                await forks.achoose(["a", "bc"], mean=True),
                await several.alogprobs(2),
                await session.ascore([PROMPT, "xyz"]),
                await session.ascore_tokens("xyz"),
            ]

    with Session(sharing_engine(), sampling=SAMPLING) as session:
        root = session.open(PROMPT).extend("!")
        forks = root.fork(2).generate().extend("?")
        forks[0].generate()
        leaves = root.generate(strategy=BestOfN(2))
        below = leaves.generate(strategy=BestOfN(2), max_new_tokens=3)
        expected = [
            forks.text,
            leaves.text,
            below.path_text(),
            root.score(["a", "bc"]),
            root.score_tokens(["a", "bc"]),
            root.choose(["a", "bc"]),
            root.logprobs(3),
            forks.score(["a", "bc"]),
            forks.score_tokens(["a", "bc"]),
            forks.choose(["a", "bc"], mean=True),
            session.open_all([PROMPT, "x"]).logprobs(2),
            session.score([PROMPT, "xyz"]),
            session.score_tokens("xyz"),
        ]
    assert len(below) == 4
    found = asyncio.run(program())
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert flat(one) == pytest.approx(flat(other), abs=1e-4), index


def flat(value) -> list:
    """Return the numbers, or the texts, of nested sequences."""
    if isinstance(value, (list, tuple)):
        return [x for each in value for x in flat(each)]
    return [value if not isinstance(value, str) else hash(value)]


def test_requests_of_coroutines_are_there_together():
    session, counted = counted_session()

    async def program() -> None:
        async with session, Session(sharing_engine()) as other:
            root = await session.aopen(PROMPT)
            with StoppedEngine(other) as stopped:
                tasks = [root.fork().agenerate() for _ in range(3)]
                together = asyncio.gather(*tasks)
                await until(lambda: counted.log.count("submit") == 3)
                assert not any(handle.done() for handle in counted.handles[-3:])
                stopped.go_on()
                await together

    asyncio.run(program())
    assert counted.num_pinned == 0


def test_a_cancelled_task_cancels_its_requests_and_the_branch_stays():
    session, counted = counted_session()

    async def program() -> None:
        async with session, Session(sharing_engine()) as other:
            group = (await session.aopen(PROMPT)).fork(2)
            before = group.path_text()
            with StoppedEngine(other):
                task = asyncio.create_task(group.agenerate())
                await until(lambda: counted.log.count("submit") == 2)
                with pytest.raises(DeftError, match="the branch is growing"):
                    group[0].fork()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert group.path_text() == before
            await group.agenerate(max_new_tokens=2)
            assert [len(tokens) for tokens in group.tokens] == [2, 2]

    asyncio.run(program())
    assert counted.num_pinned == 0


async def until(holds) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def test_one_branch_does_one_thing_at_a_time():
    async def program() -> None:
        async with Session(sharing_engine(), sampling=SAMPLING) as session:
            root = await session.aopen(PROMPT)
            found = await asyncio.gather(
                root.agenerate(), root.agenerate(), return_exceptions=True
            )
            assert found[0] is root and len(root.tokens) == 8
            assert isinstance(found[1], DeftError)
            assert str(found[1]).startswith("the branch is growing")

    asyncio.run(program())
