import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.capacity import DEFAULT_ROWS, SMALL_CHUNK, Capacity, bucket, row_bucket
from deft_jax.engine.request import Request
from deft_jax.errors import CapacityError
from deft_jax.sampling.params import Sampling

SIZES = ["requests", "rows", "nodes", "pages", "page_size", "chunk"]
BUCKETS = sorted(size << shift for size in (1, 3) for shift in range(24))

calls = st.fixed_dictionaries(
    {
        "prompt_tokens": st.lists(st.integers(1, 3000), min_size=1, max_size=90),
        "max_new_tokens": st.integers(1, 2000),
        "rows": st.integers(1, 100),
        "nodes": st.integers(101, 200),
        "page_size": st.sampled_from([1, 16, 64]),
    }
)


def capacity(**changes):
    sizes = dict(requests=2, rows=4, nodes=8, pages=16, page_size=4, chunk=64)
    return Capacity(**{**sizes, **changes})


@given(st.integers(1, 2**23))
def test_bucket_is_the_smallest_of_its_series_that_fits(value):
    assert bucket(value) == min(size for size in BUCKETS if size >= value)


@given(st.integers(1, 10**9))
def test_at_most_a_third_of_a_bucket_is_unused(value):
    assert 3 * (bucket(value) - value) <= bucket(value)


@given(st.integers(1, 10**9))
def test_rows_are_a_bucket_of_their_own(rows):
    size = row_bucket(rows)
    assert size >= rows and bucket(size) == size and size not in (6, 12)
    assert size <= 2 * rows and row_bucket(size) == size


@pytest.mark.parametrize("numbers", [range(5, 9), range(9, 17), range(17, 25)])
def test_numbers_of_branches_share_a_capacity(numbers):
    made = {
        Capacity.for_requests([prompt], 256, n, n + 1)
        for n in numbers
        for prompt in (1, 5, 64)
    }
    assert len(made) == 1


def test_few_prompts_share_the_capacity_of_one():
    one = Capacity.for_requests([9], 100, rows=8, nodes=9)
    two = Capacity.for_requests([4, 5], 100, rows=4, nodes=5)
    four = Capacity.for_requests([2, 2, 2, 3], 100, rows=2, nodes=3)
    assert one.rows == two.rows == four.rows
    assert one.requests == two.requests == four.requests == 4


def test_eight_prompts_of_sixteen_branches_decode_together():
    made = Capacity.for_requests([10] * 8, 256, rows=16, nodes=17)
    assert (made.requests, made.rows) == (8, 128)
    half = Capacity.for_requests([10] * 8, 256, rows=16, nodes=17, max_rows=64)
    assert (half.requests, half.rows) == (4, 64)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_below_1_is_refused(name):
    with pytest.raises(CapacityError, match=f"{name} must be at least 1, got 0"):
        capacity(**{name: 0})


def test_tokens_and_pages():
    assert capacity(pages=16, page_size=4).tokens == 64
    assert [capacity(page_size=4).pages_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [-1, 1])
def test_covers_allows_more_of_what_changes_no_result(name, change):
    one = capacity()
    other = dataclasses.replace(one, **{name: getattr(one, name) + change})
    assert one.covers(one)
    free = name in ("requests", "nodes", "pages")
    assert other.covers(one) == (free and change == 1)
    assert one.covers(other) == (free and change == -1)


@given(calls)
def test_every_request_may_start(call):
    made = Capacity.for_requests(**call)
    for index, length in enumerate(call["prompt_tokens"]):
        size: Any = SimpleNamespace(rows=call["rows"], nodes=call["nodes"])
        request = Request(
            index=index,
            prompt=[0] * length,
            text="",
            limit=call["max_new_tokens"],
            sampling=Sampling(),
            strategy=size,
        )
        request.check(made)


@given(calls)
def test_the_longest_requests_that_decode_together_fit(call):
    made = Capacity.for_requests(**call)
    together = min(len(call["prompt_tokens"]), max(1, DEFAULT_ROWS // call["rows"]))
    longest = sorted(call["prompt_tokens"])[-together:]
    branches = together * (call["nodes"] - 1)
    pages = sum(map(made.pages_for, longest))
    pages += branches * made.pages_for(call["max_new_tokens"])
    assert made.requests >= together
    assert made.rows >= together * call["rows"]
    assert made.nodes >= together * call["nodes"]
    assert made.pages >= pages
    assert made.page_size == call["page_size"]


@given(calls)
def test_every_size_is_a_bucket(call):
    made = Capacity.for_requests(**call)
    for size in (made.requests, made.rows, made.nodes, made.pages):
        assert bucket(size) == size


@given(calls, st.randoms(use_true_random=False))
def test_order_and_length_of_the_last_page_do_not_matter(call, random):
    page, prompts = call["page_size"], list(call["prompt_tokens"])
    random.shuffle(prompts)
    # All but one token of the last page are left out: as many pages are needed.
    shorter = [length - (length - 1) % page for length in prompts]
    new_tokens = call["max_new_tokens"]
    changed = call | {
        "prompt_tokens": shorter,
        "max_new_tokens": new_tokens - (new_tokens - 1) % page,
    }
    one, other = Capacity.for_requests(**call), Capacity.for_requests(**changed)
    assert dataclasses.replace(other, chunk=one.chunk) == one


@given(calls, st.data())
def test_calls_of_one_bucket_share_a_capacity(call, data):
    """The rows of one request may be any number of their bucket."""
    call["prompt_tokens"] = call["prompt_tokens"][:1]
    one = Capacity.for_requests(**call)
    smaller = max(size for size in [0, *BUCKETS] if size < one.rows)
    rows = data.draw(st.integers(smaller + 1, one.rows))
    assert Capacity.for_requests(**call | {"rows": rows}) == one


@pytest.mark.parametrize("tokens", [SMALL_CHUNK, SMALL_CHUNK + 1])
def test_prompts_that_fit_a_small_chunk_get_one(tokens):
    halves = [tokens // 2, tokens - tokens // 2]
    made = Capacity.for_requests(halves, max_new_tokens=8, rows=1, nodes=2)
    assert (made.chunk == SMALL_CHUNK) == (tokens <= SMALL_CHUNK)


@given(calls, calls)
def test_more_prompts_never_get_less(call, other):
    one = Capacity.for_requests(**call)
    more = call | {"prompt_tokens": call["prompt_tokens"] + other["prompt_tokens"]}
    grown = Capacity.for_requests(**more)
    for name in ("requests", "rows", "nodes", "pages"):
        assert getattr(grown, name) >= getattr(one, name)
