"""Where the computing warpgroups of the Hopper kernel put their results."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import TILE_ROWS, KernelSpec
from ..mosaic.compat import store_rows
from ..mosaic.instructions import raise_flag, store_by_row
from ..mosaic.online_softmax import LOG2E
from . import work
from .hopper_producer import Partials


@dataclasses.dataclass(frozen=True)
class Output:
    """The way out of one warpgroup's results.

    Attributes:
        spec: what the kernel is compiled for.
        worker: number of the worker.
        half: number of the warpgroup.
        share: share of the worker.
        out_ref: [Q, K, G, D] global memory.
        lse_ref: [Q, K, G] float32 global memory.
        partials: room for partial results.
        staging: for each half [room, G, D] and [64, D] in one place of shared memory.
        lse_smem: [halves, 64] shared memory.
        interpreted: whether the Mosaic GPU interpreter runs the kernel.
    """

    spec: KernelSpec
    worker: Any
    half: Any
    share: work.Share
    out_ref: Any
    lse_ref: Any
    partials: Partials
    staging: Any
    lse_smem: Any
    interpreted: bool

    def send(self, piece: work.Piece, first, out, lse) -> None:
        """Write a complete tile to its place and a partial one to its slot.

        Args:
            piece: piece that is done.
            first: rank of the first query of this half.
            out: [64, D] registers, normalised.
            lse: [64] registers, in units of log 2.
        """
        spec = self.spec
        partial = piece.begin > 0
        slot = jnp.where(partial, self.worker, spec.num_workers + self.worker)
        if not spec.fused:
            partial |= jnp.logical_not(piece.ends_tile)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self.lse_smem.at[self.half][...] = jnp.where(partial, lse, lse / LOG2E)
        for half in range(spec.halves):
            here = self.half == half
            pl.when(here & jnp.logical_not(partial))(
                functools.partial(self._send_tile, half, piece.head, first, out)
            )
            pl.when(here & partial & (first < self.share.live))(
                functools.partial(self._send_partial, half, slot, out)
            )

    def _send_tile(self, half: int, head, first, out) -> None:
        spec, (tile, _) = self.spec, self.staging[half]
        store_out(spec, tile, out, self.interpreted)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(
            tile.at[pl.ds(0, spec.half_queries)],
            self.out_ref.at[pl.ds(first, spec.half_queries), head],
        )
        lse = self.lse_smem.at[half]
        store_lse(spec, lse, self.lse_ref, first, head, self.interpreted)

    def _send_partial(self, half: int, slot, out) -> None:
        spec, partials, (_, tile) = self.spec, self.partials, self.staging[half]
        tile[...] = out
        plgpu.commit_smem()
        slot = slot * spec.halves + half
        row = pl.multiple_of(slot * spec.partial_rows, 8)
        plgpu.copy_smem_to_gmem(
            tile.at[pl.ds(0, spec.partial_rows)],
            partials.out.at[pl.ds(row, spec.partial_rows)],
        )
        plgpu.copy_smem_to_gmem(self.lse_smem.at[half], partials.lse.at[slot])
        if spec.fused and not self.interpreted:
            plgpu.wait_smem_to_gmem(0)
            raise_flag(partials.flags.at[self.worker, half])


def store_out(spec: KernelSpec, ref, out, interpreted: bool) -> None:
    """Store [64, n] registers in [room, G, n] shared memory."""
    rows, columns = spec.room_queries * spec.group, out.shape[1]
    if interpreted:
        pad = jnp.zeros((rows - TILE_ROWS, columns), out.dtype)
        ref[...] = jnp.concatenate([out, pad]).reshape(ref.shape)
    else:
        store_rows(ref.reshape(rows, columns).at[pl.ds(0, TILE_ROWS)], out)


def store_lse(spec: KernelSpec, ref, lse_ref, first, head, interpreted: bool) -> None:
    """Copy [64] shared memory, written before a barrier, to a half's part of [Q, K, G].

    Args:
        spec: what the kernel is compiled for.
        ref: [64] float32 shared memory.
        lse_ref: [Q, K, G] float32 global memory.
        first: rank of the first query of the half; may be at or above `Q`.
        head: KV head.
        interpreted: whether the Mosaic GPU interpreter runs the kernel.
    """
    if not interpreted:
        store_by_row(ref, lse_ref, first, head, spec.half_queries * spec.group)
        return
    for query in range(spec.half_queries):

        @pl.when(first + query < spec.num_queries)
        def _(query=query):
            own = ref[pl.ds(query * spec.group, spec.group)]
            lse_ref[first + query, head] = own
