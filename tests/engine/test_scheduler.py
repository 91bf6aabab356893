"""Seats, the order of those who wait, and chunks, without a model."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.capacity import Capacity
from deft_jax.engine.feeding import Part, build_chunk, next_parts
from deft_jax.engine.live_request import Feed, LiveRequest
from deft_jax.engine.prefix_cache import CachedNode, PrefixCache
from deft_jax.engine.request import Request
from deft_jax.engine.scheduler import Seats, WaitingList
from deft_jax.runtime.state import NOTHING
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.tree.state import NO_NODE

CAPACITY = Capacity(requests=3, rows=6, nodes=12, pages=16, page_size=4, chunk=8)
NO_CALL: Any = None


def request(index, prompt_tokens, rows=2, priority=0, **options) -> Request:
    prompt = [100 * index + at for at in range(prompt_tokens)]
    return Request(
        index=index,
        prompt=prompt,
        text="",
        limit=4,
        sampling=Sampling(),
        strategy=BestOfN(rows),
        priority=priority,
        **options,
    )


def unshared(slot, rows, request_) -> LiveRequest:
    """Return a request of which all tokens go to its own root."""
    tree: Any = None
    live = LiveRequest(request_, NO_CALL, slot, rows, tree)
    live.above = PrefixCache().top
    live.feeds.append(Feed("root", request_.prompt))
    return live


def test_seats_are_the_first_free_ones_and_come_back():
    seats = Seats(CAPACITY)
    assert seats.take(2) == (0, [0, 1]) and seats.take(3) == (1, [2, 3, 4])
    assert seats.has(request(0, 1, rows=1)) and not seats.has(request(0, 1, rows=2))
    seats.give_back(0, [0, 1])
    assert seats.has(request(0, 1, rows=3)) and seats.take(3) == (0, [0, 1, 5])
    assert seats.take(0) == (2, []) and not seats.has(request(0, 1, rows=1))


def test_those_who_wait_start_by_priority_and_then_by_arrival():
    waiting = WaitingList()
    for index, priority in enumerate([0, 1, 0, 2, 1]):
        waiting.add(request(index, 3, priority=priority), NO_CALL)
    assert [one.request.index for one in waiting] == [3, 1, 4, 0, 2]
    first = next(iter(waiting))
    waiting.take(first)
    waiting.put_back(request(9, 3), NO_CALL)
    assert [one.request.index for one in waiting] == [1, 4, 9, 0, 2]
    gone = waiting.remove(lambda one: one.request.index in (4, 2))
    assert [one.request.index for one in gone] == [4, 2] and len(waiting) == 3


def fed(lives):
    """Yield the chunks until all is fed, and the parts they were made of."""
    while parts := next_parts(lives, CAPACITY.chunk):
        yield parts, build_chunk(CAPACITY, CAPACITY.chunk, parts)[0]
        for live, feed, _, end, *_ in parts:
            feed.fed, live.has_begun = end, True


def test_chunks_of_prompts_that_share_nothing():
    lives = [
        unshared(slot, [2 * slot, 2 * slot + 1], request(slot, tokens))
        for slot, tokens in enumerate([3, 9, 4])
    ]
    (first, one), (second, two) = fed(lives)
    assert [(p.live.slot, p.begin, p.end, p.at) for p in first] == [
        (0, 0, 3, 0),
        (1, 0, 5, 3),
    ]
    assert [(p.live.slot, p.begin, p.end, p.at) for p in second] == [
        (1, 5, 9, 0),
        (2, 0, 4, 4),
    ]
    assert one.token.tolist() == [0, 1, 2, 100, 101, 102, 103, 104]
    assert one.request.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert one.node.tolist() == [15, 15, 15, 16, 16, 16, 16, 16]  # N + R + slot.
    assert one.starts.tolist() == [True, True, False]
    assert one.root.tolist() == [NO_NODE, NO_NODE, NOTHING]
    assert one.prefix.tolist() == [NOTHING] * 3
    assert one.last.tolist() == [2, 2, -1, -1, -1, -1]
    assert one.number.tolist() == [0, 1, 0, 0, 0, 0]
    assert two.token.tolist() == [105, 106, 107, 108, 200, 201, 202, 203]
    assert two.starts.tolist() == [False, False, True]
    assert two.root.tolist() == [NOTHING, NOTHING, NO_NODE]
    assert two.last.tolist() == [-1, -1, 3, 3, 7, 7]
    assert two.number.tolist() == [0, 0, 0, 1, 0, 1]


def test_the_chunk_of_the_example():
    """The shared tokens 5 6 and the root token 7, of slot 1 of 2 and 10 nodes."""
    capacity = Capacity(requests=2, rows=2, nodes=10, pages=4, page_size=4, chunk=4)
    live = unshared(1, [0], request(0, 3, rows=1))
    live.fed_node = CachedNode([5, 6], live.above)
    live.feeds.clear()
    live.feeds += [Feed("prefix", [5, 6]), Feed("root", [7], offset=2)]
    parts = next_parts([live], 4)
    chunk, question = build_chunk(capacity, 4, parts)
    assert chunk.token.tolist() == [5, 6, 7, 0]
    assert chunk.node.tolist() == [11, 11, 13, -1]
    assert chunk.prefix.tolist() == [NOTHING, NO_NODE]
    assert chunk.root.tolist() == [NOTHING, 11]
    assert chunk.starts.tolist() == [False, True] and question is None


def test_what_is_asked_about_a_prompt_in_two_chunks():
    asked = request(0, 11, score_from=9, num_top=3)
    live = unshared(2, [], asked)
    live.feeds[0].fed = 0
    first = next_parts([live], 8)
    _, question = build_chunk(CAPACITY, 8, first)
    assert question is not None
    assert question.target.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert question.top.tolist() == [-1, -1, -1]
    live.feeds[0].fed = 8
    _, question = build_chunk(CAPACITY, 8, next_parts([live], 8))
    assert question is not None
    assert question.target.tolist()[:2] == [9, 10]
    assert question.top.tolist() == [-1, -1, 2]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=3),
    st.integers(1, 8),
)
def test_every_token_is_fed_once_in_its_order(sizes, room):
    lives = []
    for slot, (tokens, shares) in enumerate(sizes):
        live = unshared(slot, [slot], request(slot, tokens, rows=1))
        if shares and tokens > 1:
            prompt = live.request.prompt
            live.fed_node = CachedNode(prompt[:-1], live.above)
            live.feeds.clear()
            live.feeds += [
                Feed("prefix", prompt[:-1]),
                Feed("root", prompt[-1:], offset=tokens - 1),
            ]
        lives.append(live)
    told: dict[int, list[int]] = {live.slot: [] for live in lives}
    starts = np.zeros(CAPACITY.requests, int)
    while parts := next_parts(lives, room):
        assert sum(part.end - part.begin for part in parts) <= room
        chunk, _ = build_chunk(CAPACITY, CAPACITY.chunk, parts)
        starts += chunk.starts
        for slot, token in zip(chunk.request, chunk.token, strict=True):
            if slot < CAPACITY.requests:
                told[int(slot)].append(int(token))
        for live, feed, _, end, *_ in parts:
            feed.fed, live.has_begun = end, True
    assert told == {live.slot: live.request.prompt for live in lives}
    assert starts[: len(lives)].tolist() == [1] * len(lives)
    assert all(isinstance(part, Part) for part in parts)
