"""Sizes of the Hopper kernels for attention over one sequence at a time."""

import dataclasses

import jax

from deft_jax.attention.device import device_of, num_multiprocessors
from deft_jax.attention.hopper import DEFAULT_WORKERS, copied, even_workers, make_spec
from deft_jax.attention.spec import Logits
from deft_jax.pallas_kernels.kernel_spec import KernelConfig, KernelSpec

CONFIG = KernelConfig(unit_tokens=16, block_tokens=64, stages=4)
"""A few rows of queries only wait for memory: short blocks, several in flight."""

WIDE_CONFIG = dataclasses.replace(CONFIG, stages=2)
"""For heads of which no more fits the shared memory."""


def sequence_spec(
    q: jax.Array | jax.ShapeDtypeStruct,
    k_pages: jax.Array | jax.ShapeDtypeStruct,
    spec: Logits,
    num_workers: int | None = None,
) -> KernelSpec:
    """Return the spec whose tiles hold one query, or as few as one copy can move.

    Args:
        q: [Q, H, D], shape and dtype are used.
        k_pages: [M, K, P, D], shape is used.
        spec: scale, window and soft cap of the logits.
        num_workers: multiprocessors, by default those of the device.
    """
    workers = (
        num_workers or num_multiprocessors(device_of(q, k_pages)) or DEFAULT_WORKERS
    )
    config = CONFIG if q.shape[2] <= 128 else WIDE_CONFIG
    sizes = make_spec(q, k_pages, spec, config=config, num_workers=workers)
    queries = copied(sizes.group * sizes.head_dim * q.dtype.itemsize)
    sizes = dataclasses.replace(sizes, half_queries=queries, halves=1)
    workers = even_workers(workers, sizes.num_pairs)
    return dataclasses.replace(sizes, num_workers=workers)
