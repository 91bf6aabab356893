"""Merge of partial attention results on Hopper, in float32 and a fixed order.

A kernel of its own: partials of a tile come from blocks of threads that run at the same
time, so a fused merge needs a counter per tile that is cleared for every call, which
costs the launch that it would save.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from deft_jax.pallas_kernels.grouped_partial_attention.hopper_consumer import (
    ROW,
    TILE,
    finite_share,
)
from deft_jax.pallas_kernels.kernel_spec import TILE_ROWS, KernelSpec
from deft_jax.pallas_kernels.mosaic_compat import (
    COMPILER_PARAMS,
    store_rows,
    tile_transforms,
)
from deft_jax.pallas_kernels.online_softmax import LEAST_PEAK

I32 = jnp.int32
RING_BYTES = 96 * 1024


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the reduction.

    Attributes:
        columns: columns of the output per block of threads; they share a tile.
        warpgroups: that share the partials of a tile.
        stages: partials in flight per warpgroup.
    """

    columns: int
    warpgroups: int
    stages: int

    @classmethod
    def of(cls, spec: KernelSpec) -> "Plan":
        """More warpgroups where few tiles are cut into many pieces."""
        columns = 64 if spec.head_dim % 64 == 0 else spec.head_dim
        most = spec.num_workers // spec.num_pairs + 2
        warpgroups = 4 if most > 6 else 2 if most > 3 else 1
        room = RING_BYTES // (warpgroups * TILE_ROWS * columns * 2)
        stages = max(1, min(4, -(-most // warpgroups), room))
        return cls(columns, warpgroups, stages)


def tree_reduction(
    spec: KernelSpec,
    partial_out: jax.Array,
    partial_lse: jax.Array,
    pieces: jax.Array,
    live: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    *,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """Completes `grouped_partial_attention` (DeFT, arXiv 2404.00242, section 3.2).

    Args:
        spec: of the attention.
        partial_out: [slots, halves, rows, D], the partials, each normalised.
        partial_lse: [slots, halves, 64] float32, their natural log-sum-exp.
        pieces: [K * T, 2] int32, first worker and number of pieces of each tile.
        live: [1] int32, live queries.
        out: [Q, K, G, D], written where a tile has several pieces.
        lse: [K, T, halves, 64] float32, likewise.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out and lse, complete; zeros and -inf for rows that see nothing.
    """
    plan = Plan.of(spec)
    kernel = plgpu.kernel(
        functools.partial(_kernel, spec, plan, interpret is not None),
        out_type=[],
        grid=(spec.head_dim // plan.columns, spec.halves, spec.num_pairs),
        grid_names=("columns", "half", "pair"),
        num_threads=plan.warpgroups,
        thread_name="warpgroup",
        scratch_types=_scratch(spec, plan, out.dtype),
        compiler_params=COMPILER_PARAMS,
        **({} if interpret is None else {"interpret": interpret}),
    )
    out_ref, lse_ref = jax.new_ref(out), jax.new_ref(lse)
    kernel(partial_out, partial_lse, pieces, live, out_ref, lse_ref)
    return out_ref[...], lse_ref[...]


def _scratch(spec: KernelSpec, plan: Plan, dtype) -> list:
    ring = plan.warpgroups * plan.stages
    others = max(plan.warpgroups - 1, 1)
    narrow = tile_transforms(plan.columns, dtype.itemsize)
    wide = tile_transforms(plan.columns, 4)
    shape = TILE_ROWS, plan.columns
    final = spec.room_queries, spec.group, plan.columns
    return [
        plgpu.SMEM((ring, *shape), dtype, transforms=narrow),
        plgpu.SMEM((ring, TILE_ROWS), jnp.float32),
        plgpu.SMEM((others, *shape), jnp.float32, transforms=wide),
        plgpu.SMEM((others, TILE_ROWS), jnp.float32),
        plgpu.SMEM((others, TILE_ROWS), jnp.float32),
        plgpu.SMEM(final, dtype),
        plgpu.SMEM((TILE_ROWS,), jnp.float32),
        plgpu.Barrier(num_barriers=ring, num_arrivals=2),
        plgpu.Barrier(num_arrivals=others),
    ]


def _kernel(
    spec,
    plan,
    interpreted,
    partial_out_ref,
    partial_lse_ref,
    pieces_ref,
    live_ref,
    out_ref,
    lse_ref,
    ring_smem,
    ring_lse_smem,
    out_smem,
    peak_smem,
    total_smem,
    final_smem,
    final_lse_smem,
    full,
    done,
):
    column = pl.multiple_of(lax.axis_index("columns") * plan.columns, plan.columns)
    half, pair = lax.axis_index("half"), lax.axis_index("pair")
    warpgroup = lax.axis_index("warpgroup")
    worker, count = pieces_ref[pair, 0], pieces_ref[pair, 1]
    tiles = I32(spec.num_tiles)
    head, tile = lax.div(pair, tiles), lax.rem(pair, tiles)
    first = (tile * spec.halves + half) * spec.half_queries
    # A half without live queries has no partials; its rows become zeros.
    parts = jnp.where(first < live_ref[0], count, 0)
    mine = lax.div(parts - warpgroup + (plan.warpgroups - 1), I32(plan.warpgroups))

    def stage(i):
        return warpgroup * plan.stages + lax.rem(i, I32(plan.stages))

    def fetch(i):
        slot = worker + pair + i * plan.warpgroups + warpgroup
        plgpu.copy_gmem_to_smem(
            partial_out_ref.at[slot, half, :, pl.ds(column, plan.columns)],
            ring_smem.at[stage(i), pl.ds(0, spec.partial_rows)],
            full.at[stage(i)],
        )
        plgpu.copy_gmem_to_smem(
            partial_lse_ref.at[slot, half],
            ring_lse_smem.at[stage(i)],
            full.at[stage(i)],
        )

    def add(i, state):
        plgpu.barrier_wait(full.at[stage(i)])
        lse = plgpu.load(ring_lse_smem.at[stage(i)], layout=ROW, optimized=False)
        out = plgpu.load(ring_smem.at[stage(i)], layout=TILE)

        @pl.when(i + plan.stages < mine)
        def _():
            plgpu.commit_smem()
            fetch(i + plan.stages)

        return _merge(state, (out.astype(jnp.float32), lse, 1.0))

    def finish(out, peak, total):
        blind = total == 0.0
        total = jnp.where(blind, 1.0, total)
        out = finite_share(out, jnp.where(blind, 0.0, 1.0 / total))
        _store_final(spec, final_smem, out.astype(final_smem.dtype), interpreted)
        final_lse_smem[...] = jnp.where(blind, -jnp.inf, peak + jnp.log(total))
        plgpu.commit_smem()
        queries, columns = (
            pl.ds(first, spec.half_queries),
            pl.ds(column, plan.columns),
        )
        plgpu.copy_smem_to_gmem(
            final_smem.at[pl.ds(0, spec.half_queries)],
            out_ref.at[queries, head, :, columns],
        )

        @pl.when(column == 0)
        def _():
            plgpu.copy_smem_to_gmem(final_lse_smem, lse_ref.at[head, tile, half])

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def gather(state):
        """Sums the warpgroups' states in their order; the first one finishes."""
        others = out_smem, peak_smem, total_smem

        @pl.when(warpgroup > 0)
        def _():
            for ref, value in zip(others, state, strict=True):
                ref.at[warpgroup - 1][...] = value
            plgpu.barrier_arrive(done)

        @pl.when(warpgroup == 0)
        def _():
            plgpu.barrier_wait(done)
            merged = state
            for i in range(plan.warpgroups - 1):
                out = plgpu.load(out_smem.at[i], layout=TILE)
                peak, total = (
                    plgpu.load(ref.at[i], layout=ROW, optimized=False)
                    for ref in (peak_smem, total_smem)
                )
                merged = _merge(merged, (out, peak, total))
            finish(*merged)

    @pl.when((count > 1) & (first < spec.num_queries))
    def _():
        for i in range(plan.stages):

            @pl.when(i < mine)
            def _(i=i):
                fetch(I32(i))

        state = lax.fori_loop(0, mine, add, _empty(plan.columns))
        if plan.warpgroups == 1:
            finish(*state)
        else:
            gather(state)


def _merge(a, b):
    """Merges two states (out, peak, total) with natural logs."""
    peak = jnp.maximum(a[1], b[1])
    scales = jnp.exp(a[1] - peak), jnp.exp(b[1] - peak)
    outs = (finite_share(x[0], scale) for x, scale in zip((a, b), scales, strict=True))
    return sum(outs), peak, a[2] * scales[0] + b[2] * scales[1]


def _empty(columns):
    return (
        plgpu.layout_cast(jnp.zeros((TILE_ROWS, columns), jnp.float32), TILE),
        plgpu.layout_cast(jnp.full((TILE_ROWS,), LEAST_PEAK, jnp.float32), ROW),
        plgpu.layout_cast(jnp.zeros((TILE_ROWS,), jnp.float32), ROW),
    )


def _store_final(spec: KernelSpec, ref, out, interpreted):
    rows, columns = spec.room_queries * spec.group, out.shape[1]
    if interpreted:
        pad = jnp.zeros((rows - TILE_ROWS, columns), out.dtype)
        ref[...] = jnp.concatenate([out, pad]).reshape(ref.shape)
    else:
        store_rows(ref.reshape(rows, columns).at[pl.ds(0, TILE_ROWS)], out)
