"""Online softmax over blocks of KV with `mma.sync`, for the portable kernel."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import KernelSpec
from ..mosaic.compat import store_rows
from ..mosaic.mma_tile import MmaTile
from ..online_softmax import HIDDEN, LEAST_PEAK, LOG2E, State
from . import work
from .mma_fetch import Cursor, Fetch

I32 = jnp.int32


UNIT = plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=2).reduce(0)
"""Layout of one value per token of a unit, in groups of 16 tokens."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """The arithmetic of one block of threads.

    Attributes:
        spec: static sizes.
        tile: layouts.
        fetch: brings the blocks.
        mask_ref: [M * P // U + 1, fields, U] int32.
        mask_smem: [fields in use, block] int32 shared memory.
        weight_smem: [rows, block] shared memory, where warps exchange weights.
    """

    spec: KernelSpec
    tile: MmaTile
    fetch: Fetch
    mask_ref: Any
    mask_smem: Any
    weight_smem: Any

    def attend(self, piece: work.Piece, queries, positions, cursor: Cursor, count):
        """Online softmax over the blocks of a piece.

        Args:
            piece: of this worker.
            queries: [rows, D] registers.
            positions: [rows] int32 registers, of the queries; None without window.
            cursor: next block to copy.
            count: blocks consumed so far.

        Returns:
            The state, and cursor and count after the piece.
        """

        def step(seen_whole):
            def body(block, carry):
                cursor, count, state = carry
                cursor = self.fetch.next(cursor)
                ranges = [] if seen_whole else self._load_masks(piece.tile, block)
                slot = self.fetch.wait(count, cursor.count)
                sees = ranges and functools.partial(
                    self._sees, piece.index, ranges, positions
                )
                state = self._block(queries, slot, sees, state)
                self.fetch.release()
                return cursor, count + 1, state

            return body

        carry = cursor, count, self._empty()
        carry = lax.fori_loop(piece.begin, piece.split, step(True), carry)
        carry = lax.fori_loop(piece.split, piece.last, step(False), carry)
        cursor, count, state = carry
        return state, cursor, count

    def normalise(self, state: State, rows_left):
        """Output [rows, D] float32 and natural log-sum-exp [rows]."""
        tile = self.tile
        row = plgpu.broadcasted_iota(I32, (tile.rows,), 0, layout=tile.row)
        blind = (state.total == 0.0) | (row >= rows_left)
        total = jnp.where(blind, 1.0, state.total)
        share = jnp.where(blind, 0.0, 1.0 / total)
        lse = jnp.where(blind, -jnp.inf, (state.peak + jnp.log2(total)) / LOG2E)
        return tile.finite_share(state.out, share), lse

    def _empty(self) -> State:
        tile = self.tile
        return State(
            tile.full(self.spec.head_dim, 0.0),
            tile.full_row(LEAST_PEAK),
            tile.full_row(0.0),
        )

    def _block(self, queries, slot, sees, state: State) -> State:
        spec, tile = self.spec, self.tile
        size = spec.config.block_tokens
        keys, values = (ring.at[slot] for ring in self.fetch.rings)
        keys = plgpu.load(keys.transpose((1, 0)), layout=tile.right)
        logits = plgpu.mma(tile.full(size, 0.0), queries, keys)
        factor = spec.scale * LOG2E
        if spec.soft_cap is not None:
            logits = jnp.tanh(logits * (spec.scale / spec.soft_cap))
            factor = spec.soft_cap * LOG2E
        logits = logits * factor
        if sees:
            logits = jnp.where(sees(), logits, HIDDEN)
        peak = jnp.maximum(state.peak, logits.max(axis=1))
        fade = jnp.exp2(state.peak - peak)
        weights = jnp.exp2(logits - tile.across_rows(peak, size))
        total = state.total * fade + weights.sum(axis=1)
        self.weight_smem[...] = weights.astype(jnp.dtype(spec.dtype))
        out = state.out * tile.across_rows(fade, spec.head_dim)
        weights = plgpu.load(self.weight_smem, layout=tile.left)
        out = plgpu.mma(out, weights, plgpu.load(values, layout=tile.right))
        return State(out, peak, total)

    def _load_masks(self, tile: work.Tile, block):
        """Per unit [fields, U] registers; early, for the wait is long."""
        nobody = self.mask_ref.shape[0] - 1
        fields = self.mask_smem.shape[0]
        masks = []
        for unit, listed in self.fetch.units(tile, block):
            row = self.mask_ref.at[jnp.where(listed, unit, nobody)]
            row = row.at[pl.ds(0, fields)]
            masks.append(plgpu.load(row, layout=UNIT, optimized=False))
        return masks

    def _sees(self, index, masks, positions):
        """[rows, block] bool, true where the row sees the token."""
        spec, tile = self.spec, self.tile
        size = spec.config.unit_tokens
        for i, mask in enumerate(masks):
            store_rows(self.mask_smem.at[:, pl.ds(i * size, size)], mask)

        def field(index):
            ref = self.mask_smem.at[index]
            return plgpu.load(ref, layout=tile.column, optimized=False)

        first_row = index * (spec.half_queries * spec.group)
        ranks = field(0)
        first = (ranks & 0xFFFF) * spec.group - first_row
        end = lax.shift_right_logical(ranks, 16) * spec.group - first_row
        shape = tile.rows, spec.config.block_tokens
        row = plgpu.broadcasted_iota(I32, shape, 0, layout=tile.layout)
        sees = (tile.across_columns(first) <= row) & (row < tile.across_columns(end))
        if spec.window is not None:
            back = tile.across_rows(positions, shape[1]) - tile.across_columns(field(1))
            sees &= back < spec.window
        return sees
