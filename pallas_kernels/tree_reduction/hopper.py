"""Merge of partial attention results on Hopper, in float32 and a fixed order.

It serves tiles in many pieces; `grouped_partial_attention` itself merges few.
A block of threads merges some columns of a tile, and reads many partial results at a
time, since a read takes longer than all else.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..grouped_partial_attention.hopper_consumer import TILE
from ..grouped_partial_attention.hopper_output import store_lse, store_out
from ..kernel_spec import TILE_ROWS, KernelSpec
from ..mosaic.compat import COMPILER_PARAMS
from ..mosaic.online_softmax import (
    LOG2E,
    State,
    empty_state,
    normalise,
    scale_rows,
)

I32 = jnp.int32
COLUMNS = 16
"""Columns of the output per block of threads: few, so that there are many blocks."""

AT_ONCE = 9
"""Partial results in registers; two rounds for the 16 or 17 pieces of eight tiles."""


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
    """Complete `grouped_partial_attention` (DeFT, arXiv 2404.00242, section 3.2).

    Args:
        spec: static sizes of the attention, not `fused`.
        partial_out: [slots * halves * rows + 64, D], the partials, each normalised.
        partial_lse: [slots * halves, 64] float32, their log-sum-exp in units of log 2.
        pieces: [K * T, 2] int32, first worker and number of pieces of each tile.
        live: [1] int32, live queries.
        out: [Q, K, G, D], written where a tile has several pieces.
        lse: [Q, K, G] float32, written there too.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out and lse, complete; zeros and -inf for rows that see nothing.
    """
    final = spec.room_queries, spec.group, COLUMNS
    kernel = plgpu.kernel(
        functools.partial(_kernel, spec, interpret is not None),
        out_type=[],
        grid=(spec.head_dim // COLUMNS, spec.halves, spec.num_pairs),
        grid_names=("columns", "half", "pair"),
        scratch_types=[
            plgpu.SMEM(final, out.dtype),
            plgpu.SMEM((TILE_ROWS,), jnp.float32),
        ],
        kernel_name="tree_reduction",
        compiler_params=COMPILER_PARAMS,
        **({} if interpret is None else {"interpret": interpret}),
    )
    out_ref, lse_ref = jax.new_ref(out), jax.new_ref(lse)
    kernel(partial_out, partial_lse, pieces, live, out_ref, lse_ref)
    return out_ref[...], lse_ref[...]


def _kernel(
    spec,
    interpreted,
    partial_out_ref,
    partial_lse_ref,
    pieces_ref,
    live_ref,
    out_ref,
    lse_ref,
    out_smem,
    lse_smem,
):
    column = pl.multiple_of(lax.axis_index("columns") * COLUMNS, COLUMNS)
    half, pair = lax.axis_index("half"), lax.axis_index("pair")
    worker, count, live = pieces_ref[pair, 0], pieces_ref[pair, 1], live_ref[0]
    tiles = I32(spec.num_tiles)
    head, tile = lax.div(pair, tiles), lax.rem(pair, tiles)
    first = (tile * spec.halves + half) * spec.half_queries
    # A half without live queries has no partials; its rows become zeros.
    parts = jnp.where(first < live, count, 0)
    reader = _Reader(
        spec,
        worker,
        half,
        parts,
        partial_out_ref.at[:, pl.ds(column, COLUMNS)],
        partial_lse_ref,
    )

    @pl.when((count > 1) & (first < spec.num_queries))
    def _():
        steps = lax.div(parts + (AT_ONCE - 1), I32(AT_ONCE))
        state = lax.fori_loop(0, steps, reader.add, tuple(empty_state(TILE, COLUMNS)))
        out, lse = normalise(TILE, State(*state), (live - first) * spec.group)
        store_out(spec, out_smem, out.astype(out_smem.dtype), interpreted)
        lse_smem[...] = lse / LOG2E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(
            out_smem.at[pl.ds(0, spec.half_queries)],
            out_ref.at[
                pl.ds(first, spec.half_queries), head, :, pl.ds(column, COLUMNS)
            ],
        )

        @pl.when(column == 0)
        def _():
            store_lse(spec, lse_smem, lse_ref, first, head, interpreted)

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


@dataclasses.dataclass(frozen=True)
class _Reader:
    spec: KernelSpec
    worker: Any
    half: Any
    parts: Any
    out_ref: Any
    lse_ref: Any

    def add(self, step, state):
        """Add AT_ONCE partial results to a state."""
        read = [self._read(step * AT_ONCE + i) for i in range(AT_ONCE)]
        state = State(*state)
        peak = state.peak
        for _, lse in read:
            peak = jnp.maximum(peak, lse)
        fade = jnp.exp2(state.peak - peak)
        out, total = state.out * TILE.across_rows(fade, COLUMNS), state.total * fade
        for part, lse in read:
            weight = jnp.exp2(lse - peak)
            out += scale_rows(TILE, part.astype(jnp.float32), weight)
            total += weight
        return tuple(State(out, peak, total))

    def _read(self, i):
        """Return the `i`-th partial result; after the last one nothing that weighs."""
        spec = self.spec
        piece = jnp.minimum(i, self.parts - 1)
        # The first piece is the last of its worker, which may have another partial one.
        slot = self.worker + jnp.where(piece == 0, spec.num_workers, piece)
        slot = slot * spec.halves + self.half
        row = pl.multiple_of(slot * spec.partial_rows, 8)
        lse = plgpu.load(self.lse_ref.at[slot], layout=TILE.row, optimized=False)
        rows = self.out_ref.at[pl.ds(row, TILE_ROWS)]
        out = plgpu.load(rows, layout=TILE.layout, optimized=False)
        return out, jnp.where(i < self.parts, lse, -jnp.inf)
