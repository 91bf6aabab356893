"""How much memory an engine needs on its device, and how much the device has free."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.errors import CapacityError
from deft_jax.runtime.forward import ModelConfig
from deft_jax.runtime.state import LOG_STEPS, StepLog

INT32_BYTES = FLOAT32_BYTES = 4

VOCAB_ARRAYS = 6
"""Arrays of [B, V] numbers that sampling holds at once, the logits counted."""

PAGE_PAIR_ARRAYS, QUERY_PAIR_ARRAYS = 2, 5
"""Arrays of [Q, M] and of [Q, Q] numbers that finding free slots holds at once."""

LAYER_ARRAYS = 32
"""Arrays of [Q, E] numbers that a layer and its attention hold at once."""

SLOT_ARRAYS = 12
"""Arrays of [M, P] int32: three of the tree, the others of a step's grouping."""

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def free_bytes(device: Any) -> int | None:
    """Return the free memory of a `jax.Device`, `None` where it does not say."""
    statistics = device.memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return _available_host_bytes() if device.platform == "cpu" else None


def needed_bytes(
    config: ModelConfig, dtype: jnp.dtype, capacity: Capacity
) -> dict[str, int]:
    """Estimate the memory that an engine takes beside the weights, by what takes it.

    The numbers of arrays are what XLA's own analysis of the compiled steps says on a
    CPU; the pool is exact.

    Args:
        config: sizes of the model.
        dtype: dtype of KV and hidden states.
        capacity: sizes of the state.

    Returns:
        Bytes of the KV pool, of the tree with its log, of a step's layers and logits,
        and of its comparisons of every query token with every page and all others.
    """
    rows, pages = capacity.rows, capacity.pages
    queries = max(rows, capacity.chunk)
    itemsize = jnp.dtype(dtype).itemsize
    slot_bytes = SLOT_ARRAYS * INT32_BYTES
    log_fields = len(StepLog.__dataclass_fields__)
    return {
        "KV pool": kv_pool_bytes(config, dtype, capacity),
        "tree": (
            (capacity.tokens + capacity.nodes) * slot_bytes
            + LOG_STEPS * log_fields * rows * INT32_BYTES
            + queries * config.hidden_size * itemsize
        ),
        "layers": LAYER_ARRAYS * queries * config.hidden_size * FLOAT32_BYTES,
        "logits": VOCAB_ARRAYS * rows * config.vocab_size * FLOAT32_BYTES,
        "comparisons": (
            (PAGE_PAIR_ARRAYS * pages + QUERY_PAIR_ARRAYS * queries)
            * queries
            * INT32_BYTES
        ),
    }


def kv_pool_bytes(config: ModelConfig, dtype: jnp.dtype, capacity: Capacity) -> int:
    """Return the bytes of the keys and values of all pages in all layers."""
    token_bytes = 2 * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return config.num_layers * capacity.tokens * token_bytes


def has_memory(
    config: ModelConfig, dtype: jnp.dtype, capacity: Capacity, reserved: int = 0
) -> bool:
    """Say whether the default device has the memory for an engine, or does not tell.

    Args:
        config: sizes of the model.
        dtype: dtype of KV and hidden states.
        capacity: sizes of the state.
        reserved: bytes of free memory that something else will take.
    """
    free = free_bytes(jax.devices()[0])
    needed = sum(needed_bytes(config, dtype, capacity).values())
    return free is None or needed <= free - reserved


def spare_bytes(reserved: int = 0) -> int:
    """Return the memory that the default device has free, 0 where it does not tell.

    Args:
        reserved: bytes of it that something else will take.
    """
    return max((free_bytes(jax.devices()[0]) or 0) - reserved, 0)


def check_memory(
    config: ModelConfig, dtype: jnp.dtype, capacity: Capacity, reserved: int = 0
) -> None:
    """Check that the default device has the memory for an engine.

    The arguments are those of `has_memory`.

    Raises:
        CapacityError: it has not; the message gives the numbers.
    """
    if has_memory(config, dtype, capacity, reserved):
        return
    needed = needed_bytes(config, dtype, capacity)
    free = spare_bytes(reserved)
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in needed.items())
    raise CapacityError(
        f"{capacity.rows} branches in {capacity.pages} pages of {capacity.page_size} "
        f"tokens need {_gib(sum(needed.values()))} beside the weights ({parts}), the "
        f"device has {_gib(free)} free; lower n, max_new_tokens, the context "
        "or the page size"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception is the device's or the host's lack of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _available_host_bytes() -> int | None:
    """Return what the kernel would give, within the limit of a container."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in meminfo.splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _physical_bytes()
    limit = _container_bytes()
    return available if limit is None else min(available, limit)


def _container_bytes() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        return max(limit - int((folder / "memory.current").read_text()), 0)
    except (OSError, ValueError):
        return None


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
