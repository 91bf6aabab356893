"""Tree attention with the portable Pallas kernels (`mma.sync`).

For NVIDIA GPUs other than Hopper: compiled for compute capability 8.0, 8.6, 8.9 and
10.0, and not yet run there.
"""

import jax

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.kernel_inputs import Inputs, prepare
from deft_jax.attention.schedule import head_chunks
from deft_jax.attention.spec import Logits
from deft_jax.pallas_kernels.kernel_spec import KernelConfig, KernelSpec

DEFAULT_WORKERS = 108
"""Multiprocessors of an A100, where no GPU says otherwise."""


def tree_attention_mma(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping,
    attention: Logits,
    *,
    bulk: bool,
    num_workers: int | None = None,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """Attend over the pages with the portable kernels.

    Args:
        q: [Q, H, D], queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        grouping: what each query sees.
        attention: scale, window and soft cap of the logits.
        bulk: whether the device has bulk copies (compute capability 9.0 and newer).
        num_workers: blocks of threads.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.
    """
    spec = make_mma_spec(q, k_pages, attention, bulk=bulk, num_workers=num_workers)
    inputs = prepare_portably(grouping, spec)
    return attend_portably(
        spec, q, k_pages, v_pages, inputs, bulk=bulk, interpret=interpret
    )


def prepare_portably(grouping: Grouping, spec: KernelSpec) -> Inputs:
    """Return what the portable kernels need to know of a step, as `prepare` does."""
    # Imported where it runs: Mosaic takes long to import, and no CPU needs it.
    from deft_jax.pallas_kernels.mosaic.tile import tile_rows

    return prepare(grouping, spec, tile_rows(spec))


def attend_portably(
    spec: KernelSpec,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    prepared: Inputs,
    *,
    bulk: bool,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """Run the portable kernels of one layer on what was prepared for the step.

    Args:
        spec: what the kernels are compiled for.
        q: [Q, H, D], queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        prepared: what `prepare_portably` returned.
        bulk: whether the device has bulk copies (compute capability 9.0 and newer).
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.
    """
    # Imported where it runs: Mosaic takes long to import, and no CPU needs it.
    from deft_jax.pallas_kernels.grouped_partial_attention.mma import (
        grouped_partial_attention,
        pack_rows,
        unpack_rows,
    )
    from deft_jax.pallas_kernels.tree_reduction.mma import tree_reduction

    masks, positions, live, schedule = prepared
    heads = spec.num_queries, spec.num_kv_heads, spec.group, spec.head_dim
    out, lse, part_out, part_lse = grouped_partial_attention(
        spec,
        pack_rows(spec, q.reshape(heads)),
        k_pages,
        v_pages,
        masks,
        positions[:, 0],
        live,
        schedule.unit,
        schedule.tile,
        schedule.worker,
        schedule.pieces,
        bulk=bulk,
        interpret=interpret,
    )
    out, lse = tree_reduction(
        spec, part_out, part_lse, schedule.pieces, out, lse, interpret=interpret
    )
    out, lse = (unpack_rows(spec, x) for x in (out, lse))
    return out.reshape(q.shape), lse.reshape(q.shape[:2])


def make_mma_spec(
    q: jax.Array | jax.ShapeDtypeStruct,
    k_pages: jax.Array | jax.ShapeDtypeStruct,
    attention: Logits,
    *,
    bulk: bool,
    num_workers: int | None = None,
) -> KernelSpec:
    """Return the static sizes of the portable kernels.

    Registers limit rows and blocks.
    """
    num_queries, num_q_heads, head_dim = q.shape
    num_kv_heads, page_size = k_pages.shape[1:3]
    most = 32 if head_dim > 128 else 64
    group = num_q_heads // num_kv_heads
    chunks = head_chunks(group, most)
    group //= chunks
    half_queries = min(most // group, num_queries)
    wide = head_dim > 128 or (head_dim > 96 and half_queries * group > 32)
    # Copies without the bulk engine swizzle units of 80 elements only by 32 tokens.
    unit = 32 if head_dim == 80 and not bulk else 16
    return KernelSpec(
        num_queries=num_queries,
        num_kv_heads=num_kv_heads * chunks,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        half_queries=half_queries,
        halves=1,
        num_workers=num_workers or DEFAULT_WORKERS,
        dtype=q.dtype.name,
        scale=attention.scale,
        window=attention.window,
        soft_cap=attention.soft_cap,
        head_chunks=chunks,
        config=KernelConfig(
            unit_tokens=unit, block_tokens=32 if wide else 64, stages=2
        ),
    )
