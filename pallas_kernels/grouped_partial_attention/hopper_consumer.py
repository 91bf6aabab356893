"""The computing warpgroups of the Hopper kernel: online softmax over blocks of KV."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import TILE_ROWS, KernelSpec
from ..mosaic.compat import ACC, tile_transforms
from ..mosaic.online_softmax import (
    HIDDEN,
    LOG2E,
    State,
    empty_state,
    scale_rows,
    sees,
)
from ..mosaic.tile import WgmmaTile
from ..mosaic.unseen import find_unseen, tell_unseen, zero_unseen
from . import work
from .ring import Ring

I32 = jnp.int32
TILE = WgmmaTile()


@dataclasses.dataclass(frozen=True)
class Consumer:
    """One warpgroup with one half of each tile's rows.

    Attributes:
        spec: what the kernel is compiled for.
        worker: number of the worker.
        half: number of the warpgroup.
        keys: ring of [BN, D] blocks, `BN` tokens each; partial results come last.
        values: ring of blocks likewise.
        masks: ring of [units, fields, U] int32, who sees what of a block.
        partial_lse: [2, stages, 64] shared memory, log-sum-exps of partial results.
        interpreted: whether the Mosaic GPU interpreter runs the kernel.
    """

    spec: KernelSpec
    worker: Any
    half: Any
    keys: Ring
    values: Ring
    masks: Ring
    partial_lse: Any
    interpreted: bool

    def attend(self, piece: work.Piece, queries, positions, counts):
        """Walk the blocks of a piece under an online softmax.

        Args:
            piece: piece of this worker's share.
            queries: [64, D] registers.
            positions: [64] int32 registers, positions of the rows' queries; None
                without a window.
            counts: blocks and masked blocks that the rings have seen so far.

        Returns:
            The state, and the counts after the piece.
        """
        spec = self.spec
        first_row = self.first_query(piece.index) * spec.group
        rows = _Rows(queries, first_row, positions)

        def whole(_, carry):
            count, *state = carry
            state = self._block(rows, self.keys.slot(count), None, State(*state))
            return count + 1, *state

        def masked(block, carry):
            count, mask_count, *state = carry
            slots = self.keys.slot(count), self.masks.slot(mask_count)
            rest = block - piece.tile.whole - piece.tile.both
            half, _ = work.owner(piece.tile, rest)
            mine = (rest < 0) | (half == self.half)
            state = lax.cond(
                mine,
                lambda *state: tuple(self._block(rows, *slots, State(*state))),
                lambda *state: self._skip(*slots, state),
                *state,
            )
            return count + 1, mask_count + 1, *state

        count, mask_count = counts
        carry = count, *empty_state(TILE, spec.head_dim)
        masked_first = work.masked_first(spec.num_pairs, spec.num_workers, self.worker)
        first, middle, last = piece.ranges(masked_first)
        count, *state = lax.fori_loop(*first, whole, carry)
        carry = count, mask_count, *state
        count, mask_count, *state = lax.fori_loop(*middle, masked, carry)
        count, *state = lax.fori_loop(*last, whole, (count, *state))
        return State(*state), (count, mask_count)

    def merge(self, share: work.Share, state: State, counts):
        """Add the partial results of the later workers to a share's last tile.

        They come through the rings of keys and of values in turn, in the order of the
        workers.
        """
        first, mask_count = counts
        rings = self.keys, self.values
        halves = share.merge_halves
        stop = share.merges * halves

        def step(i, carry):
            count, *state = carry
            slot = self.keys.slot(count)
            for turn, ring in enumerate(rings):
                i_turn = i * len(rings) + turn
                mine = lax.rem(i_turn, halves) == self.half
                lse = self.partial_lse.at[turn, slot]
                state = lax.cond(
                    i_turn < stop,
                    functools.partial(self._add, ring, slot, lse, mine),
                    lambda *state: state,
                    *state,
                )
            return count + 1, *state

        steps = lax.div(stop + (len(rings) - 1), I32(len(rings)))
        count, *merged = lax.fori_loop(0, steps, step, (first, *state))
        return State(*merged), (count, mask_count)

    def _add(self, ring: Ring, slot, lse_ref, mine, *state):
        def add(*state):
            ring.wait_full(slot)
            part = ring.buffer.at[slot, pl.ds(0, TILE_ROWS)]
            out = plgpu.load(part, layout=TILE.layout)
            lse = plgpu.load(lse_ref, layout=TILE.row, optimized=False)
            plgpu.commit_smem()
            ring.release(slot)
            return tuple(add_partial(State(*state), out, lse))

        def skip(*state):
            ring.skip(slot)
            return state

        return lax.cond(mine, add, skip, *state)

    def first_query(self, tile):
        """Return the rank of the first query of this half of a tile."""
        return (tile * self.spec.halves + self.half) * self.spec.half_queries

    def _block(self, rows, slot, mask_slot, state: State) -> State:
        spec = self.spec
        shape = TILE_ROWS, spec.config.block_tokens
        self.keys.wait_full(slot)
        keys = self.keys.buffer.at[slot].transpose((1, 0))

        def multiply(products):
            plgpu.wgmma(products, rows.queries, keys)
            return products[...]

        logits = pl.run_scoped(multiply, ACC(shape, jnp.float32))
        self.keys.release(slot)
        factor = spec.scale * LOG2E
        if spec.soft_cap is not None:
            logits = jnp.tanh(logits * (spec.scale / spec.soft_cap))
            factor = spec.soft_cap * LOG2E
        if mask_slot is not None:
            seen = self._sees(rows, mask_slot)
            logits = jnp.where(seen, logits * factor, HIDDEN)
            factor = 1.0
        peak = jnp.maximum(state.peak, logits.max(axis=1) * factor)
        fade = jnp.exp2(state.peak - peak)
        weights = jnp.exp2(logits * factor - TILE.across_rows(peak, shape[1]))
        total = state.total * fade + weights.sum(axis=1)
        weights = weights.astype(jnp.dtype(spec.dtype))
        out = state.out * TILE.across_rows(fade, spec.head_dim)
        self.values.wait_full(slot)
        values = self._shielded(slot, mask_slot)

        def accumulate(out):
            plgpu.wgmma(out, weights, values)

        out = pl.run_state(accumulate)(ACC.init(out))
        self.values.release(slot)
        return State(out, peak, total)

    def _mask(self, mask_slot, index: int):
        """Return a field [BN] of the masks of a block, in the layout of columns."""
        ref = self.masks.buffer.at[mask_slot, :, index]
        value = plgpu.load(ref, layout=TILE.column, optimized=False)
        return value.reshape((self.spec.config.block_tokens,))

    def _sees(self, rows, mask_slot):
        """Return [64, BN] bool, true where the row sees the token."""
        self.masks.wait_full(mask_slot)
        ranks, back = self._mask(mask_slot, 0), None
        if self.spec.window is not None:
            back = TILE.across_rows(rows.positions, ranks.shape[0])
            back -= TILE.across_columns(self._mask(mask_slot, 1))
        return sees(TILE, self.spec, ranks, rows.first, back)

    def _shielded(self, slot, mask_slot):
        """Return the values of a stage, with zeros for tokens that nobody sees.

        A block that every row sees whole has no such token. Both warpgroups store the
        zeros: to wait for each other would take longer. The masks are read for it here,
        and released: while there are logits, no register is left for what is unseen.
        """
        values = self.values.buffer.at[slot]
        if mask_slot is None:
            return values
        if self.interpreted:
            ranks = self._mask(mask_slot, 0)
            unseen = (ranks & 0xFFFF) >= lax.shift_right_logical(ranks, 16)
            plgpu.commit_smem()
            self.masks.release(mask_slot)
            return jnp.where(unseen[:, None], 0, values[...])
        masks = self.masks.buffer.at[mask_slot, :, 0]
        unseen = tell_unseen(find_unseen(masks, self._transforms))
        self.masks.release(mask_slot)
        zero_unseen(values, unseen, self._transforms)
        return values

    @property
    def _transforms(self) -> tuple:
        spec = self.spec
        return tile_transforms(spec.head_dim, jnp.dtype(spec.dtype).itemsize)

    def _skip(self, slot, mask_slot, state):
        self.keys.skip(slot)
        self.masks.skip(mask_slot)
        self.values.skip(slot)
        return tuple(state)


class _Rows(NamedTuple):
    queries: Any
    first: Any
    positions: Any


def add_partial(state: State, out, lse) -> State:
    """Add a normalised partial result [64, D] with log-sum-exps [64] to a state."""
    peak = jnp.maximum(state.peak, lse)
    fade, weight = jnp.exp2(state.peak - peak), jnp.exp2(lse - peak)
    part = scale_rows(TILE, out.astype(jnp.float32), weight)
    out = state.out * TILE.across_rows(fade, out.shape[1]) + part
    return State(out, peak, state.total * fade + weight)
