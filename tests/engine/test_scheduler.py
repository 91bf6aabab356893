"""Rows, slots, admission and chunks, without a model."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.capacity import Capacity
from deft_jax.engine.request import Request
from deft_jax.engine.scheduler import Part, Scheduler

CAPACITY = Capacity(requests=3, rows=6, nodes=12, pages=16, page_size=4, chunk=8)


def request(index, prompt_tokens, rows=2, nodes=3, limit=4):
    prompt = [100 * index + at for at in range(prompt_tokens)]
    return Request(index, prompt, "", limit, rows, nodes)


def fed(scheduler):
    """Yield the chunks until all prompts are fed, and the parts they were made of."""
    while parts := scheduler.next_parts():
        yield parts, scheduler.chunk(parts)
        scheduler.note_fed(parts)


def test_requests_start_in_order_while_there_is_room():
    scheduler = Scheduler([request(i, 3) for i in range(5)], CAPACITY)
    assert scheduler.admit() == [0, 1, 2]
    assert [r.index for r in scheduler.waiting] == [3, 4]
    assert scheduler.admit() == []
    assert scheduler.limits() == [4, 4, 4]
    assert scheduler.end(1).index == 1
    assert scheduler.admit() == [1]
    assert scheduler.active[1].index == 3


def test_the_first_in_line_is_not_overtaken():
    large, small = request(1, 3, rows=5, nodes=6), request(2, 3, rows=1, nodes=2)
    scheduler = Scheduler([request(0, 3), large, small], CAPACITY)
    assert scheduler.admit() == [0]
    scheduler.end(0)
    assert scheduler.admit() == [0, 1]


def test_a_request_alone_starts_whatever_it_declares():
    scheduler = Scheduler([request(0, 3, nodes=99), request(1, 3)], CAPACITY)
    assert scheduler.admit() == [0]


def test_chunks_of_the_example():
    prompts = [request(0, 3), request(1, 9), request(2, 4)]
    scheduler = Scheduler(prompts, CAPACITY)
    scheduler.admit()
    (first, one), (second, two) = fed(scheduler)
    assert first == [Part(0, 0, 3), Part(1, 0, 5)]
    assert second == [Part(1, 5, 9), Part(2, 0, 4)]
    assert one.token.tolist() == [0, 1, 2, 100, 101, 102, 103, 104]
    assert one.request.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert one.starts.tolist() == [True, True, False]
    assert one.last.tolist() == [2, 2, -1, -1, -1, -1]
    assert one.number.tolist() == [0, 1, 0, 0, 0, 0]
    assert two.token.tolist() == [105, 106, 107, 108, 200, 201, 202, 203]
    assert two.request.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert two.starts.tolist() == [False, False, True]
    assert two.last.tolist() == [-1, -1, 3, 3, 7, 7]
    assert two.number.tolist() == [0, 0, 0, 1, 0, 1]


def test_a_request_that_is_put_back_waits_for_an_end_and_begins_anew():
    scheduler = Scheduler([request(0, 3), request(1, 9)], CAPACITY)
    scheduler.admit()
    scheduler.note_fed(scheduler.next_parts())
    assert scheduler.fed(1) == 5 and scheduler.is_fed(0)
    scheduler.put_back(1)
    assert [r.index for r in scheduler.waiting] == [1]
    assert scheduler.next_parts() == [] and scheduler.admit() == []
    scheduler.end(0)
    assert scheduler.admit() == [0]
    assert scheduler.next_parts() == [Part(0, 0, 8)]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=9),
    st.randoms(use_true_random=False),
)
def test_every_token_is_fed_once_and_every_row_is_given_back(sizes, random):
    """Requests end in any order, and some are put back before they end."""
    requests = [request(i, n, rows, rows + 1) for i, (n, rows) in enumerate(sizes)]
    scheduler = Scheduler(requests, CAPACITY)
    told: Counter[int] = Counter()
    owner = np.full(CAPACITY.rows, -1)
    while scheduler.waiting or scheduler.active:
        scheduler.admit()
        for parts, chunk in fed(scheduler):
            live = chunk.request < CAPACITY.requests
            told.update(chunk.token[live].tolist())
            for slot, _, end in parts:
                request_ = scheduler.active[slot]
                rows = np.flatnonzero(chunk.request[chunk.last] == slot)
                rows = rows[chunk.last[rows] >= 0]
                if end == len(request_.prompt):
                    assert len(rows) == request_.rows and (owner[rows] == -1).all()
                    assert chunk.token[chunk.last[rows[0]]] == request_.prompt[-1]
                    assert sorted(chunk.number[rows]) == list(range(len(rows)))
                    owner[rows] = slot
                else:
                    assert len(rows) == 0
        slot = random.choice(sorted(scheduler.active))
        owner[owner == slot] = -1
        if len(scheduler.active) > 1 and random.random() < 0.2:
            told.subtract(scheduler.active[slot].prompt)
            scheduler.put_back(slot)
        else:
            scheduler.end(slot)
    assert told == Counter(token for r in requests for token in r.prompt)
    assert (owner == -1).all()
