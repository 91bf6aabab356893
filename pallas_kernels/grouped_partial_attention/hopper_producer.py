"""The copying warps of the Hopper kernel: one each for queries, keys, values, masks."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import TURNS, KernelSpec
from ..mosaic.instructions import WARP_LANES, await_flags
from . import work
from .ring import Ring

I32 = jnp.int32


@dataclasses.dataclass(frozen=True)
class Partials:
    """Partial results of other workers.

    Attributes:
        out: [slots * halves * rows + 64, D].
        lse: [slots * halves, 64].
        flags: [W, halves], what is there; None in the interpreter, which runs the
            later workers first.
        lse_smem: [2, stages, 64] shared memory, beside the rings that take `out`.
    """

    out: Any
    lse: Any
    flags: Any
    lse_smem: Any


@dataclasses.dataclass(frozen=True)
class Producer:
    """Copies of one worker; see `grouped_partial_attention` for the refs."""

    spec: KernelSpec
    worker: Any
    worker_ref: Any
    tile_ref: Any
    unit_ref: Any

    def queries(self, q_ref, q_smem, full, free) -> None:
        """Brings the queries of each piece, one piece ahead."""
        spec = self.spec

        def piece(piece: work.Piece, count):
            @pl.when(count > 0)
            def _():
                plgpu.barrier_wait(free)

            for half in range(spec.halves):
                first = (piece.index * spec.halves + half) * spec.half_queries
                plgpu.copy_gmem_to_smem(
                    q_ref.at[pl.ds(first, spec.half_queries), piece.head],
                    q_smem.at[half, pl.ds(0, spec.half_queries)],
                    full,
                )
            return count + 1

        count = self._for_each_piece(piece)

        @pl.when(count > 0)
        def _():
            plgpu.barrier_wait(free)

    def pages(self, pages_ref, ring: Ring, partials: Partials, turn: int) -> None:
        """Brings the keys or the values of each block, then partial results.

        These are what later workers computed of the last tile, one half after the
        other; `turn` says which of two warps brings the first.
        """
        count = self._pages(pages_ref, ring)
        if self.spec.fused:
            count = self._partials(partials, ring, turn, count)
        ring.drain(count)

    def _pages(self, pages_ref, ring: Ring):
        """Copy all blocks; return how many they are."""
        spec = self.spec
        per_page, size = I32(spec.units_per_page), spec.config.unit_tokens
        rows, first = spec.copy_tokens, self._first_piece()
        known = first.begin < first.last

        def fetch(head, units, count):
            slot = ring.wait_free(count)
            for i in range(spec.copies_per_block):
                unit = units[i * rows // size]
                page, part = lax.div(unit, per_page), lax.rem(unit, per_page)
                plgpu.copy_gmem_to_smem(
                    pages_ref.at[page, head, part, pl.ds(i * rows % size, rows)],
                    ring.buffer.at[slot, pl.ds(i * rows, rows)],
                    ring.full.at[slot],
                )
            return count + 1

        def piece(piece: work.Piece, count):
            head = lax.div(piece.head, I32(spec.head_chunks))

            def whole(block, count):
                at = work.whole_units(spec.units_per_block, piece.tile, block)
                units = self._units(at, at + spec.units_per_block, known & (count == 0))
                return fetch(head, units, count)

            def masked(block, count):
                at, end = work.masked_units(spec.units_per_block, piece.tile, block)
                return fetch(head, self._units(at, end, known & (count == 0)), count)

            for step, blocks in zip(
                (whole, masked, whole), piece.ranges(self._masked_first()), strict=True
            ):
                count = lax.fori_loop(*blocks, step, count)
            return count

        return self._for_each_piece(piece)

    def _partials(self, partials: Partials, ring: Ring, turn: int, count):
        """Copy every second partial result that the consumers merge.

        The barrier of a stage counts the copies of a block of pages: one of them brings
        the log-sum-exps, the others the rows.
        """
        share = work.Share.read(self.worker_ref, self.worker)
        chunks = _row_chunks(self.spec)
        halves, later = share.merge_halves, self.worker + 1
        stop = share.merges * halves

        def wait(i, _):
            begin = turn + i * (TURNS * WARP_LANES)
            await_flags(partials.flags, later, begin, TURNS, stop, halves)

        if partials.flags is not None:
            at_once = I32(TURNS * WARP_LANES)
            lax.fori_loop(0, lax.div(stop + (at_once - 1), at_once), wait, None)

        def fetch(i, count):
            i = i * TURNS + turn
            at = (later + lax.div(i, halves)) * self.spec.halves + lax.rem(i, halves)
            slot = ring.wait_free(count)
            plgpu.copy_gmem_to_smem(
                partials.lse.at[at],
                partials.lse_smem.at[turn, slot],
                ring.full.at[slot],
            )
            for there, here, size in chunks:
                row = at * self.spec.partial_rows + there
                plgpu.copy_gmem_to_smem(
                    partials.out.at[pl.ds(row, size)],
                    ring.buffer.at[slot, pl.ds(here, size)],
                    ring.full.at[slot],
                )
            return count + 1

        turns = lax.div(stop + (TURNS - 1 - turn), I32(TURNS))
        return lax.fori_loop(0, turns, fetch, count)

    def masks(self, mask_ref, ring: Ring) -> None:
        """Brings who sees what of the blocks under a mask.

        A block's missing units are repeated ones, so that values are always real, with
        the mask that nobody sees.
        """
        spec = self.spec
        nobody = mask_ref.shape[0] - 1
        first = self._first_piece()
        known = (first.begin < first.last) & (
            first.first_block(self._masked_first()) >= first.split
        )

        def masked(tile, block, count):
            at, end = work.masked_units(spec.units_per_block, tile, block)
            units = self._units(at, end, known & (count == 0))
            slot = ring.wait_free(count)
            for i, unit in enumerate(units):
                row = jnp.where(at + i < end, unit, nobody)
                plgpu.copy_gmem_to_smem(
                    mask_ref.at[row], ring.buffer.at[slot, i], ring.full.at[slot]
                )
            return count + 1

        def piece(piece: work.Piece, count):
            def step(block, count):
                return masked(piece.tile, block, count)

            return lax.fori_loop(piece.split, piece.last, step, count)

        ring.drain(self._for_each_piece(piece))

    def _for_each_piece(self, body):
        refs = self.worker_ref, self.tile_ref
        return work.for_each_piece(self.spec, *refs, self.worker, body, I32(0))

    def _masked_first(self):
        spec = self.spec
        return work.masked_first(spec.num_pairs, spec.num_workers, self.worker)

    def _first_piece(self) -> work.Piece:
        share = work.Share.read(self.worker_ref, self.worker)
        tile = work.Tile.read(self.worker_ref, self.worker, work.SHARE_FIELDS)
        return work.first_piece(share, tile)

    def _units(self, at, end, in_row):
        """Units of a block; those of the share's first one are in the worker's row.

        Reading the list of units would cost the first copies a round trip to memory.
        """
        each = range(self.spec.units_per_block)
        return lax.cond(
            in_row,
            lambda: [self.worker_ref[self.worker, work.FIRST_UNITS + i] for i in each],
            lambda: [self.unit_ref[jnp.minimum(at + i, end - 1)] for i in each],
        )


def _row_chunks(spec: KernelSpec) -> list[tuple[int, int, int]]:
    """The copies of a partial result's rows: first row there, here, and how many.

    They share the rows in groups of 8. Those for which none is left repeat the last
    rows, to where nobody looks.
    """
    copies, groups = spec.copies_per_block - 1, spec.partial_rows // 8
    chunks, row = [], 0
    for i in range(copies):
        size = 8 * max(groups // copies + (i < groups % copies), 1)
        chunks.append((min(row, spec.partial_rows - 8), row, size))
        row += size
    return chunks
