"""Grouped partial attention with `mma.sync`: Ampere, Ada, Hopper and Blackwell.

Blocks of threads of one warpgroup, several per multiprocessor, each walk a share of the
schedule. All four warps copy KV some blocks ahead and multiply in between. Tiles of 16
or 32 rows suit pages that few queries share, on Hopper too, where `hopper` has 64 or
128 rows. Nothing here needs Hopper: outputs go from registers straight to memory, in
the order of the tiles; `pack_rows` and `unpack_rows` convert.

Blocks of 64 tokens fit the registers, but for 64 rows of 128 elements and for heads of
256, which need blocks of 32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import KernelSpec
from ..mosaic.compat import COMPILER_PARAMS, store_rows, tile_transforms
from ..mosaic.online_softmax import LOG2E, normalise
from ..mosaic.tile import MmaTile, tile_rows
from . import work
from .mma_compute import Compute
from .mma_fetch import Fetch

I32 = jnp.int32


def pack_rows(spec: KernelSpec, x: jax.Array) -> jax.Array:
    """Arrange [Q, K, G, D] as [K, T, rows, D].

    Row `r` of a tile is head `r % G` of the tile's query `r // G`; rows of no query are
    zeros.
    """
    tiles, half = spec.num_tiles, spec.half_queries
    used, rows = half * spec.group, tile_rows(spec)
    x = jnp.pad(x, ((0, tiles * half - spec.num_queries), (0, 0), (0, 0), (0, 0)))
    x = x.transpose(1, 0, 2, 3).reshape(-1, tiles, used, x.shape[-1])
    return jnp.pad(x, ((0, 0), (0, 0), (0, rows - used), (0, 0)))


def unpack_rows(spec: KernelSpec, x: jax.Array) -> jax.Array:
    """Arrange [K, T, rows, ...] as [Q, K, G, ...], the inverse of `pack_rows`."""
    used, rest = spec.half_queries * spec.group, x.shape[3:]
    x = x[:, :, :used].reshape(spec.num_kv_heads, -1, spec.group, *rest)
    return jnp.swapaxes(x[:, : spec.num_queries], 0, 1)


def grouped_partial_attention(
    spec: KernelSpec,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    masks: jax.Array,
    row_position: jax.Array,
    live: jax.Array,
    unit: jax.Array,
    tile: jax.Array,
    worker: jax.Array,
    pieces: jax.Array,
    *,
    bulk: bool = True,
    interpret=None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Attend with every piece of the schedule (DeFT, arXiv 2404.00242, section 3.2).

    What slots hold that no query of the step sees plays no role, be it NaN.

    Args:
        spec: static sizes, with `halves=1`; a tile has `tile_rows(spec)` rows.
        q: [K, T, rows, D], `pack_rows` of the queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        masks: [M * P // U + 1, mask_fields, U] int32: first rank that sees the token
            and, 16 bits up, one past the last; then the token's position. The last row
            is seen by nobody.
        row_position: [T, rows] int32, position of each row's query; read if there is a
            window.
        live: [1] int32, live queries; rows past them are zeros.
        unit: [T * M * P // U] int32, units that the tiles see; `Schedule` in
            `deft_jax.attention.schedule` describes this array and the next ones.
        tile: [T, 8] int32, where each tile's units are, by class.
        worker: [W, 16 + units of a block] int32, the shares of the workers.
        pieces: [K * T, 2] int32, first worker and number of pieces of each tile.
        bulk: copy with the engine for bulk copies: needs compute capability 9.0, which
            has no other way; must be False before.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out [K, T, rows, D] and lse [K, T, rows] float32 (natural log) of the tiles that
        lie in one share, and the partial ones of the other tiles' pieces, [slots, rows,
        D] and [slots, rows] float32. What is not written is undefined; `tree_reduction`
        completes it.
    """
    shape = -1, k_pages.shape[1], spec.units_per_page, spec.config.unit_tokens
    k_units, v_units = (x.reshape(*shape, spec.head_dim) for x in (k_pages, v_pages))
    rows = tile_rows(spec)
    tiles, slots = (spec.num_kv_heads, spec.num_tiles, rows), (spec.num_slots, rows)
    kernel = plgpu.kernel(
        functools.partial(_kernel, spec, _page_transforms(spec, q.dtype, bulk)),
        out_type=[
            jax.ShapeDtypeStruct((*tiles, spec.head_dim), q.dtype),
            jax.ShapeDtypeStruct(tiles, jnp.float32),
            jax.ShapeDtypeStruct((*slots, spec.head_dim), q.dtype),
            jax.ShapeDtypeStruct(slots, jnp.float32),
        ],
        grid=(spec.num_workers,),
        grid_names=("worker",),
        scratch_types=_scratch(spec, rows, q.dtype, bulk),
        kernel_name="grouped_partial_attention",
        compiler_params=COMPILER_PARAMS,
        **({} if interpret is None else {"interpret": interpret}),
    )
    return kernel(
        q, k_units, v_units, masks, row_position, live, unit, tile, worker, pieces
    )


def _scratch(spec: KernelSpec, rows: int, dtype, bulk: bool) -> dict[str, Any]:
    """Return what a block of threads has in shared memory, by the kernel's names."""
    config = spec.config
    block = config.stages, config.block_tokens, spec.head_dim
    tiled = _page_transforms(spec, dtype, bulk)
    fields = 1 if spec.window is None else 2
    weights = tile_transforms(config.block_tokens, dtype.itemsize)
    scratch: dict[str, Any] = {
        "k_smem": plgpu.SMEM(block, dtype, transforms=tiled),
        "v_smem": plgpu.SMEM(block, dtype, transforms=tiled),
        "mask_smem": plgpu.SMEM((fields, config.block_tokens), jnp.int32),
        "weight_smem": plgpu.SMEM(
            (rows, config.block_tokens), dtype, transforms=weights
        ),
    }
    if bulk:
        arrivals = 2 * spec.units_per_block
        scratch["full"] = plgpu.Barrier(
            num_barriers=config.stages, num_arrivals=arrivals
        )
    return scratch


def _page_transforms(spec: KernelSpec, dtype, bulk: bool) -> tuple:
    """Return the layout of keys and of values in shared memory."""
    # The four warps of a `cp.async` copy take different tiles of a unit's 8-row strips.
    parts = 1 if bulk or spec.config.unit_tokens % 32 == 0 else 2
    return tile_transforms(spec.head_dim, dtype.itemsize, parts=parts)


def _kernel(
    spec,
    page_transforms,
    q_ref,
    k_ref,
    v_ref,
    mask_ref,
    position_ref,
    live_ref,
    unit_ref,
    tile_ref,
    worker_ref,
    pieces_ref,
    out_ref,
    lse_ref,
    partial_out_ref,
    partial_lse_ref,
    *,
    k_smem,
    v_smem,
    mask_smem,
    weight_smem,
    full=None,
):
    worker = lax.axis_index("worker")
    layouts = MmaTile(tile_rows(spec), spec.dtype)
    schedule = worker_ref, tile_ref, unit_ref
    fetch = Fetch(spec, worker, *schedule, (k_ref, v_ref), (k_smem, v_smem), full)
    compute = Compute(
        spec, layouts, fetch, mask_ref, mask_smem, weight_smem, page_transforms
    )
    live = live_ref[0]

    def piece(piece: work.Piece, carry):
        queries = plgpu.load(
            q_ref.at[piece.head, piece.index], layout=layouts.left, optimized=False
        )
        positions = None
        if spec.window is not None:
            positions = plgpu.load(
                position_ref.at[piece.index], layout=layouts.row, optimized=False
            )
        state, *carry = compute.attend(piece, queries, positions, *carry)
        rows_left = (live - piece.index * spec.half_queries) * spec.group
        out, lse = normalise(layouts, state, rows_left)
        send(piece, out.astype(q_ref.dtype), lse / LOG2E)
        return tuple(carry)

    def send(piece: work.Piece, out, lse):
        """Write a finished tile to its place and a partial one to its slot."""
        pair = piece.head * spec.num_tiles + piece.index
        alone = pieces_ref[pair, 1] == 1

        @pl.when(alone)
        def _():
            store_rows(out_ref.at[piece.head, piece.index], out)
            store_rows(lse_ref.at[piece.head, piece.index], lse)

        @pl.when(jnp.logical_not(alone))
        def _():
            store_rows(partial_out_ref.at[worker + pair], out)
            store_rows(partial_lse_ref.at[worker + pair], lse)

    carry = fetch.start(), I32(0)
    work.for_each_piece(spec, worker_ref, tile_ref, worker, piece, carry)
