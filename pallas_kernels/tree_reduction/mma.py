"""Merge of partial attention results on any GPU, in float32 and a fixed order."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import KernelSpec
from ..mosaic.compat import COMPILER_PARAMS, store_rows
from ..mosaic.online_softmax import empty_state, scale_rows
from ..mosaic.tile import MmaTile, tile_rows

IN_FLIGHT_ROWS = 128
"""Rows of partials that are read at a time, to hide the memory's latency."""


def tree_reduction(
    spec: KernelSpec,
    partial_out: jax.Array,
    partial_lse: jax.Array,
    pieces: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    *,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """Complete `grouped_partial_attention` (DeFT, arXiv 2404.00242, section 3.2).

    Args:
        spec: static sizes of the attention.
        partial_out: [slots, rows, D], the partials, each normalised.
        partial_lse: [slots, rows] float32, their natural log-sum-exp.
        pieces: [K * T, 2] int32, first worker and number of pieces of each tile.
        out: [K, T, rows, D], written where a tile has several pieces.
        lse: [K, T, rows] float32, written there too.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out and lse, complete; zeros and -inf for rows that see nothing.
    """
    columns = 64 if spec.head_dim % 64 == 0 else spec.head_dim
    kernel = plgpu.kernel(
        functools.partial(_kernel, spec, columns),
        out_type=[],
        grid=(spec.head_dim // columns, spec.num_pairs),
        grid_names=("columns", "pair"),
        kernel_name="tree_reduction",
        compiler_params=COMPILER_PARAMS,
        **({} if interpret is None else {"interpret": interpret}),
    )
    out_ref, lse_ref = jax.new_ref(out), jax.new_ref(lse)
    kernel(partial_out, partial_lse, pieces, out_ref, lse_ref)
    return out_ref[...], lse_ref[...]


def _kernel(
    spec, columns, partial_out_ref, partial_lse_ref, pieces_ref, out_ref, lse_ref
):
    tile = MmaTile(tile_rows(spec), spec.dtype)
    column, pair = lax.axis_index("columns") * columns, lax.axis_index("pair")
    worker, count = pieces_ref[pair, 0], pieces_ref[pair, 1]
    head = lax.div(pair, jnp.int32(spec.num_tiles))
    index = lax.rem(pair, jnp.int32(spec.num_tiles))
    at_once = IN_FLIGHT_ROWS // tile.rows

    def read(i):
        slot = worker + pair + jnp.minimum(i, count - 1)
        part = partial_out_ref.at[slot, :, pl.ds(column, columns)]
        lse = plgpu.load(partial_lse_ref.at[slot], layout=tile.row, optimized=False)
        out = plgpu.load(part, layout=tile.layout, optimized=False)
        return out, jnp.where(i < count, lse, -jnp.inf)

    def add(step, state):
        parts = [read(step * at_once + i) for i in range(at_once)]
        for part in parts:
            state = _merge(tile, state, *part)
        return state

    @pl.when(count > 1)
    def _():
        empty = tuple(empty_state(tile, columns))
        steps = lax.div(count + (at_once - 1), jnp.int32(at_once))
        out, peak, total = lax.fori_loop(0, steps, add, empty)
        blind = total == 0.0
        total = jnp.where(blind, 1.0, total)
        out = scale_rows(tile, out, jnp.where(blind, 0.0, 1.0 / total))
        target = out_ref.at[head, index, :, pl.ds(column, columns)]
        store_rows(target, out.astype(jnp.dtype(spec.dtype)))

        @pl.when(column == 0)
        def _():
            lse = jnp.where(blind, -jnp.inf, peak + jnp.log(total))
            store_rows(lse_ref.at[head, index], lse)


def _merge(tile: MmaTile, state, part_out, part_lse):
    """Add a normalised part to a state (out, peak, total) with natural logs."""
    out, peak, total = state
    highest = jnp.maximum(peak, part_lse)
    fade, weight = jnp.exp(peak - highest), jnp.exp(part_lse - highest)
    part = scale_rows(tile, part_out.astype(jnp.float32), weight)
    out = out * tile.across_rows(fade, out.shape[1]) + part
    return out, highest, total * fade + weight
