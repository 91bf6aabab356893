"""The copying warps of the Hopper kernel: one each for queries, keys, values, masks."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from deft_jax.pallas_kernels.grouped_partial_attention import work
from deft_jax.pallas_kernels.grouped_partial_attention.ring import Ring
from deft_jax.pallas_kernels.kernel_spec import KernelSpec

I32 = jnp.int32


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

    def pages(self, pages_ref, ring: Ring) -> None:
        """Brings the keys or the values of each block."""
        spec = self.spec
        per_page, size = I32(spec.units_per_page), spec.config.unit_tokens

        def fetch(head, at, end, count):
            units = self._units(at, end)
            slot = ring.wait_free(count)
            for i, unit in enumerate(units):
                page, part = lax.div(unit, per_page), lax.rem(unit, per_page)
                plgpu.copy_gmem_to_smem(
                    pages_ref.at[page, head, part],
                    ring.buffer.at[slot, pl.ds(i * size, size)],
                    ring.full.at[slot],
                )
            return count + 1

        def piece(piece: work.Piece, count):
            head = lax.div(piece.head, I32(spec.head_chunks))

            def whole(block, count):
                at = work.whole_units(spec, piece.tile, block)
                return fetch(head, at, at + spec.units_per_block, count)

            def masked(block, count):
                return fetch(head, *work.masked_units(spec, piece.tile, block), count)

            count = lax.fori_loop(piece.begin, piece.split, whole, count)
            return lax.fori_loop(piece.split, piece.last, masked, count)

        ring.drain(self._for_each_piece(piece))

    def masks(self, mask_ref, ring: Ring) -> None:
        """Brings who sees what of the blocks under a mask.

        A block's missing units are repeated ones, so that values are always real, with
        the mask that nobody sees.
        """
        spec = self.spec
        nobody = mask_ref.shape[0] - 1

        def masked(tile, block, count):
            at, end = work.masked_units(spec, tile, block)
            units = self._units(at, end)
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

    def _units(self, at, end):
        each = range(self.spec.units_per_block)
        return [self.unit_ref[jnp.minimum(at + i, end - 1)] for i in each]
