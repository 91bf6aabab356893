"""What an engine needs, what the device has, and what is refused beforehand."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from deft_jax.capacity import Capacity
from deft_jax.engine import device_memory
from deft_jax.engine.device_memory import free_bytes, kv_pool_bytes, needed_bytes
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import (
    Runner,
    empty_chunk,
    no_turn,
    run_decode,
    run_prefill,
)
from deft_jax.errors import CapacityError, DeftError
from deft_jax.runtime.attention_method import TreeMethod
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies.parallel import BestOfN, ContinueAll
from tests.support.tiny_model import (
    CONFIG,
    EOS,
    AsciiTokenizer,
    decode_alone,
    tiny_model,
)

SMALL = Capacity(requests=4, rows=8, nodes=16, pages=16, page_size=64, chunk=64)
LONE = Capacity(requests=4, rows=1, nodes=2, pages=16, page_size=64, chunk=64)
"""What an engine that caches nothing chooses for one branch, so that these tests share
a compilation.
"""

SHORT = Sampling(temperature=0.0, max_new_tokens=6)
GIB = 2**30


def new_engine(**options) -> Engine:
    return Engine(tiny_model(), AsciiTokenizer(), prefix_cache=False, **options)


@pytest.fixture
def has_free(monkeypatch):
    """Says how much memory the device has free."""

    def set_free(num_bytes):
        monkeypatch.setattr(device_memory, "free_bytes", lambda device: num_bytes)

    return set_free


def test_the_host_has_memory():
    free = free_bytes(jax.devices("cpu")[0])
    assert free is not None and 2**20 < free < 2**50


def test_a_device_tells_its_own_memory():
    stats = {"bytes_limit": 80, "bytes_in_use": 30}
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert free_bytes(device) == 50
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert free_bytes(silent) is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_pool_is_counted_to_the_byte(dtype):
    pool = TreeMethod().create_pool(CONFIG, SMALL, dtype)
    size = sum(array.nbytes for array in jax.tree.leaves(pool))
    assert kv_pool_bytes(CONFIG, dtype, SMALL) == size


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 512, "nodes": 1024},
        {"pages": 4096, "rows": 128, "nodes": 256, "chunk": 256},
    ],
)
def test_the_estimate_holds_what_the_compiler_counts(changes):
    """And is not far above it."""
    capacity = dataclasses.replace(SMALL, **changes)
    runner = Runner(tiny_model(), TreeMethod())
    runner.prepare(capacity)
    runner.start_planner(ContinueAll())
    planner_state = runner.planner_state(ContinueAll())
    args = runner.model, dataclasses.replace(runner.state, planner=planner_state)
    free = [None] * (capacity.requests - 1)
    programs = [
        run_prefill.lower(
            *args, empty_chunk(capacity, capacity.chunk), method=runner.method
        ),
        run_decode.lower(
            *args,
            make_request_table([SHORT, *free], [6, *free], EOS),
            no_turn(capacity, ContinueAll()),
            planner=ContinueAll(),
            method=runner.method,
        ),
    ]
    state = sum(array.nbytes for array in jax.tree.leaves(runner.state))
    analyses = [program.compile().memory_analysis() for program in programs]
    memory = [one for one in analyses if one is not None]
    assert len(memory) == len(programs)
    needed = sum(needed_bytes(CONFIG, tiny_model().dtype, capacity).values())
    used = state + max(one.temp_size_in_bytes for one in memory)
    assert 0.9 * used <= needed <= 2 * used


@pytest.mark.parametrize(
    ("n", "max_new_tokens"), [(1_000_000, 100), (100_000, 100), (60_000, 120)]
)
def test_what_does_not_fit_is_refused_before_it_is_allocated(n, max_new_tokens):
    """With the memory of this machine: the least of them takes 200 GiB."""
    engine = new_engine()
    sampling = dataclasses.replace(SHORT, max_new_tokens=max_new_tokens)
    with pytest.raises(CapacityError, match=r"need \d+\.\d\d GiB beside") as error:
        engine.generate("Hello", BestOfN(n), sampling)
    assert "\n" not in str(error.value) and "GiB free; lower n" in str(error.value)
    (tree,) = engine.generate("Hello", sampling=SHORT)
    assert engine.capacity == LONE
    assert tree.best().tokens == decode_alone("Hello", SHORT).tokens


def test_a_capacity_that_does_not_fit_is_refused(has_free):
    has_free(GIB)
    capacity = dataclasses.replace(SMALL, pages=2**20)
    with pytest.raises(CapacityError, match="has 1.00 GiB free"):
        new_engine(capacity=capacity).generate("Hello")


def test_requests_take_turns_where_memory_is_short(has_free):
    prompts = [chr(97 + i) * (3 + i) for i in range(8)]
    one = Capacity.for_requests([10], 6, rows=4, nodes=5)
    needed = needed_bytes(CONFIG, tiny_model().dtype, one)
    has_free(int(1.2 * sum(needed.values())))
    engine = new_engine()
    trees = engine.generate(prompts, BestOfN(4), SHORT)
    assert engine.capacity is not None and engine.capacity.rows < 32
    for prompt, tree in zip(prompts, trees, strict=True):
        assert tree.best().tokens == decode_alone(prompt, SHORT).tokens


def test_a_device_that_does_not_tell_is_tried(has_free):
    has_free(None)
    (tree,) = new_engine(capacity=LONE).generate("Hello", sampling=SHORT)
    assert tree.notice is None


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9"),
        jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 99 bytes."),
        MemoryError(),
    ],
)
def test_a_device_that_runs_out_all_the_same_is_a_capacity_error(monkeypatch, error):
    def fail(*_):
        raise error

    engine = new_engine(capacity=LONE)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "decode", fail)
        with pytest.raises(CapacityError, match="ran out of memory; lower n") as told:
            engine.generate("Hello", sampling=SHORT)
    assert "\n" not in str(told.value)
    (tree,) = engine.generate("Hello", sampling=SHORT)
    assert tree.best().tokens == decode_alone("Hello", SHORT).tokens


def test_a_share_of_the_memory_is_used_for_the_pool(has_free):
    has_free(GIB)
    engine = new_engine(memory=0.25)
    (tree,) = engine.generate("Hello", sampling=SHORT)
    assert tree.best().tokens == decode_alone("Hello", SHORT).tokens
    capacity = engine.capacity
    assert capacity is not None
    pool = kv_pool_bytes(CONFIG, tiny_model().dtype, capacity)
    assert 0.24 * GIB < pool <= 0.25 * GIB
    for share in (0, 1.5, True, "half"):
        with pytest.raises(DeftError, match="memory must be a share above 0"):
            new_engine(memory=share)


def test_other_errors_of_the_runtime_stay_what_they_are(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Runner, "decode", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        new_engine(capacity=LONE).generate("Hello", sampling=SHORT)
