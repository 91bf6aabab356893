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
        out: [slots * halves * rows + 64, D], normalised outputs.
        lse: [slots * halves, 64] float32, log-sum-exps in units of log 2.
        flags: [W, halves] int32, 1 where a result for an earlier worker is there; None
            in the interpreter, which runs the later workers first. Nothing but the
            order of calls protects it: see `grouped_partial_attention`.
        lse_smem: [2, stages, 64] shared memory, beside the rings that take `out`.
    """

    out: Any
    lse: Any
    flags: Any
    lse_smem: Any


@dataclasses.dataclass(frozen=True)
class Producer:
    """The copies of one worker, each kind made by one warp.

    Attributes:
        spec: what the kernel is compiled for.
        worker: number of the worker.
        worker_ref: [W, 16 + units of a block] int32, shares of the workers.
        tile_ref: [T, 8] int32, units of the tiles by class.
        unit_ref: [T * M * P // U] int32, units of the tiles.
    """

    spec: KernelSpec
    worker: Any
    worker_ref: Any
    tile_ref: Any
    unit_ref: Any

    def queries(self, q_ref, q_smem, full, free) -> None:
        """Bring the queries of each piece, one piece ahead."""
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
        """Bring the keys or the values of each block, then partial results.

        These are what later workers computed of the last tile, one half after the
        other. The two warps take turns: of two halves each brings one of every worker,
        of one half each brings that of every second worker.

        Args:
            pages_ref: [M, K, P // U, U, D] keys or values.
            ring: where they go.
            partials: partial results of all workers.
            turn: 0 for the warp that brings the first partial result, 1 for the other.
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
        """Bring who sees what of the blocks under a mask.

        The units that a block lacks are copies of its last one under the mask that
        nobody sees. With 4 units a block, of which units 7 and 9 are left:

            unit   7   9   9        9
            mask   7   9   nobody   nobody
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
        """Return the units of a block; the worker's row has those of the first block.

        Reading the list of units would cost the first copies a round trip to memory.
        """
        each = range(self.spec.units_per_block)
        return lax.cond(
            in_row,
            lambda: [self.worker_ref[self.worker, work.FIRST_UNITS + i] for i in each],
            lambda: [self.unit_ref[jnp.minimum(at + i, end - 1)] for i in each],
        )


def _row_chunks(spec: KernelSpec) -> list[tuple[int, int, int]]:
    """Return the copies of a partial result's rows: first row there, here, how many.

    The rows are divided among them in strips of 8. Copies for which none is left repeat
    the last strip, to where nobody looks: 16 rows in 3 copies are (0, 0, 8), (8, 8, 8)
    and (8, 16, 8).
    """
    copies, strips = spec.copies_per_block - 1, spec.partial_rows // 8
    chunks, row = [], 0
    for i in range(copies):
        size = 8 * max(strips // copies + (i < strips % copies), 1)
        chunks.append((min(row, spec.partial_rows - 8), row, size))
        row += size
    return chunks
