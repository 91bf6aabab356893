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
from ..mosaic.online_softmax import HIDDEN, LOG2E, State, empty_state, sees
from ..mosaic.tile import MmaTile
from ..mosaic.unseen import find_unseen, tell_unseen, zero_unseen
from . import work
from .mma_fetch import Cursor, Fetch

I32 = jnp.int32


UNIT = plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=2).reduce(0)
"""Layout of one value per token of a unit, in groups of 16 tokens."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """The arithmetic of one block of threads.

    Attributes:
        spec: what the kernel is compiled for.
        tile: tile of the rows.
        fetch: what brings the blocks.
        mask_ref: [M * P // U + 1, fields, U] int32.
        mask_smem: [fields in use, block] int32 shared memory.
        weight_smem: [rows, block] shared memory, where warps exchange weights.
        value_transforms: layout of the values in shared memory.
    """

    spec: KernelSpec
    tile: MmaTile
    fetch: Fetch
    mask_ref: Any
    mask_smem: Any
    weight_smem: Any
    value_transforms: tuple

    def attend(self, piece: work.Piece, queries, positions, cursor: Cursor, count):
        """Walk the blocks of a piece under an online softmax.

        Args:
            piece: piece of this worker's share.
            queries: [rows, D] registers.
            positions: [rows] int32 registers, positions of the rows' queries; None
                without a window.
            cursor: next block to copy.
            count: blocks consumed so far.

        Returns:
            The state, and cursor and count after the piece.
        """

        def step(seen_whole):
            def body(block, carry):
                cursor, count, state = carry
                cursor = self.fetch.next(cursor)
                masks = [] if seen_whole else self._load_masks(piece.tile, block)
                slot = self.fetch.wait(count, cursor.count)
                look = masks and functools.partial(
                    self._look, piece.index, masks, positions
                )
                state = self._block(queries, slot, look, state)
                self.fetch.release()
                return cursor, count + 1, state

            return body

        carry = cursor, count, empty_state(self.tile, self.spec.head_dim)
        carry = lax.fori_loop(piece.begin, piece.split, step(True), carry)
        carry = lax.fori_loop(piece.split, piece.last, step(False), carry)
        cursor, count, state = carry
        return state, cursor, count

    def _block(self, queries, slot, look, state: State) -> State:
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
        unseen = None
        if look:
            seen, unseen = look()
            logits = jnp.where(seen, logits, HIDDEN)
        peak = jnp.maximum(state.peak, logits.max(axis=1))
        fade = jnp.exp2(state.peak - peak)
        weights = jnp.exp2(logits - tile.across_rows(peak, size))
        total = state.total * fade + weights.sum(axis=1)
        if unseen is not None:
            # The barriers of the next store let all warps see the zeros.
            zero_unseen(values, unseen, self.value_transforms, commit=False)
        self.weight_smem[...] = weights.astype(jnp.dtype(spec.dtype))
        out = state.out * tile.across_rows(fade, spec.head_dim)
        weights = plgpu.load(self.weight_smem, layout=tile.left)
        out = plgpu.mma(out, weights, plgpu.load(values, layout=tile.right))
        return State(out, peak, total)

    def _load_masks(self, tile: work.Tile, block):
        """Return [fields, U] registers per unit; called early, for the wait is long."""
        nobody = self.mask_ref.shape[0] - 1
        fields = self.mask_smem.shape[0]
        masks = []
        for unit, listed in self.fetch.units(tile, block):
            row = self.mask_ref.at[jnp.where(listed, unit, nobody)]
            row = row.at[pl.ds(0, fields)]
            masks.append(plgpu.load(row, layout=UNIT, optimized=False))
        return masks

    def _look(self, index, masks, positions):
        """Return [rows, block] bool, true where the row sees the token, and the unseen.

        Args:
            index: number of the tile.
            masks: what `_load_masks` returned.
            positions: [rows] int32 registers; None without a window.
        """
        spec, tile = self.spec, self.tile
        size = spec.config.unit_tokens
        for i, mask in enumerate(masks):
            store_rows(self.mask_smem.at[:, pl.ds(i * size, size)], mask)

        def field(index):
            ref = self.mask_smem.at[index]
            return plgpu.load(ref, layout=tile.column, optimized=False)

        ranks, back = field(0), None
        if spec.window is not None:
            back = tile.across_rows(positions, ranks.shape[0])
            back -= tile.across_columns(field(1))
        first_row = index * (spec.half_queries * spec.group)
        unseen = find_unseen(self.mask_smem.at[0], self.value_transforms)
        unseen = tell_unseen(unseen, commit=False)
        return sees(tile, spec, ranks, first_row, back), unseen
