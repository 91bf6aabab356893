"""What branches share is fed once and read once; what they let go can be freed."""

import gc

import pytest

from deft_jax import Sampling, Session
from tests.support.counted_engine import CountedEngine, StoppedEngine
from tests.support.tiny_model import sharing_engine

PROMPT = "The quick brown fox jumps over the lazy dog and runs."
SAMPLING = Sampling(temperature=0.9, max_new_tokens=6, ignore_eos=True)


@pytest.fixture
def counted() -> CountedEngine:
    engine = sharing_engine()
    engine.clear_cache()
    return CountedEngine(engine)


def test_nothing_of_a_path_is_fed_twice(counted: CountedEngine):
    with Session(counted, sampling=SAMPLING) as session:
        forks = session.open(PROMPT).fork(3).generate()
        forks.extend(" and it goes on").generate()
        trees = [handle.result() for handle in counted.handles[-3:]]
        for tree, branch in zip(trees, forks, strict=True):
            path = len(branch.path_tokens()) - SAMPLING.max_new_tokens
            assert tree.stats.prompt_tokens_total == path
            # All but the last token, whose logits are asked for.
            assert tree.stats.prompt_tokens_cached == path - 1


def test_branches_that_grow_together_read_what_they_share_once(counted: CountedEngine):
    with Session(counted, sampling=SAMPLING) as session, Session(counted) as other:
        group = session.open(PROMPT).fork(3)
        with StoppedEngine(other) as stopped:
            # All requests are there when the engine looks again.
            handles = [
                session.submit(branch.path_tokens(), sampling=SAMPLING, key=key)
                for key, branch in enumerate(group)
            ]
            stopped.go_on()
        stats = [handle.result(300).stats for handle in handles]
    read = max(each.kv_tokens_read for each in stats)
    alone = sum(each.kv_tokens_read_per_sequence for each in stats)
    assert read < alone / 2


def test_what_is_dropped_can_be_evicted_and_what_is_kept_cannot(
    counted: CountedEngine,
):
    forest = counted.engine._work.forest

    def pinned() -> int:
        counted.engine.read("x").result(300)  # Orders are carried out by now.
        return sum(node.pins for node in forest.cache.nodes())

    with Session(counted, sampling=SAMPLING) as session:
        before = pinned()
        root = session.open(PROMPT)
        forks = root.fork(3).generate()
        assert pinned() - before == 4
        forks.keep([1, 0, 2], 1)
        del forks
        gc.collect()
        root.logprobs(1)
        assert pinned() - before == 1
    assert pinned() == before
