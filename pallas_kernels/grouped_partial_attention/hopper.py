"""Grouped partial attention on Hopper: bulk copies, wgmma, persistent workers.

One block of threads per multiprocessor, a *worker*, walks its share of the schedule:
pieces of tiles, each a run of blocks of KV. Six parts of it work side by side and meet
at rings of `stages` buffers, whose barriers say "full" and "free":

    time ->
    warp 0  queries |Q of piece 0|Q of piece 1   |              |Q of piece 2
    warp 1  keys    |K0|K1|K2|K3|K4|K5|K6|..                    .. |partials 0 2 4
    warp 2  values  |V0|V1|V2|V3|V4|V5|V6|..                    .. |partials 1 3
    warp 3  masks   |M2|M3|M6|..
    half 0             |Q K0 V0|Q K1 V1|Q K2 M2 V2|-         |send |Q K4 V4| .. |add ..
    half 1             |Q K0 V0|Q K1 V1|-         |Q K3 M3 V3|send |Q K4 V4| .. |add ..

Here piece 0 has blocks 0 to 3, of which each half alone sees one under a mask.
The four warps copy. Each half is a warpgroup that computes with 64 rows (queries times
the query heads that share a KV head) of the tile in registers; small tiles have one
half. Both wait for the same stages, and each frees a stage when it has read it, or at
once where only the other half sees the block. The queries of the next piece come while
the blocks of this one are computed; outputs leave by bulk copies that nobody waits for
until their buffer is needed again.

In the end a worker adds to its last tile what later workers made of the tile's other
pieces. They raise flags in global memory when these are there. Since a worker waits for
later ones only, and they are the blocks of threads that the GPU starts first, somebody
can always go on. The flags are all that calls share: two calls with one array of them,
or with two arrays that the compiler made one, must not run at the same time.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import TILE_ROWS, TURNS, KernelSpec
from ..mosaic.compat import COMPILER_PARAMS, tile_transforms
from ..mosaic.online_softmax import normalise
from . import work
from .hopper_consumer import TILE, Consumer
from .hopper_output import Output
from .hopper_producer import Partials, Producer
from .ring import Ring

I32 = jnp.int32
COPYING_REGISTERS = 72
COMPUTING_REGISTERS = {1: 248, 2: 216}
"""Registers of a thread, by the number of computing warpgroups.

With two, the register file holds 504 for one thread of each and of the copying one.
"""

MAX_REGISTER_COLUMNS = 128
"""Most columns of queries that registers hold beside the sums of values."""


def grouped_partial_attention(
    spec: KernelSpec,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    masks: jax.Array,
    row_position: jax.Array,
    unit: jax.Array,
    tile: jax.Array,
    worker: jax.Array,
    flags: jax.Array,
    *,
    interpret=None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Attend with every tile of the schedule (DeFT, arXiv 2404.00242, section 3.2).

    What slots hold that no query of the step sees plays no role, be it NaN.

    Args:
        spec: what the kernel is compiled for.
        q: [Q, K, G, D], queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        masks: [M * P // U + 1, mask_fields, U] int32: first rank that sees the token
            and, 16 bits up, one past the last; then the token's position. The last row
            is seen by nobody.
        row_position: [T, halves, 64] int32, position of each row's query; read if there
            is a window.
        unit: [T * M * P // U] int32, units that the tiles see; `Schedule` in
            `deft_jax.attention.schedule` describes this array and the next ones.
        tile: [T, 8] int32, where each tile's units are, by class.
        worker: [W, 16 + units of a block] int32, the shares of the workers.
        flags: [W, halves] int32, zeros. Written during the call and zeros again at its
            end. XLA does not know that it is written, so calls with the same array must
            not run at the same time: neither on two streams nor side by side in one
            command buffer.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out [Q, K, G, D] and lse [Q, K, G] float32 (natural log); zeros and -inf for
        rows that see nothing. Then partial results, [2 * W * halves * rows + 64, D] and
        [2 * W * halves, 64] float32 in units of log 2: those of worker `w` for a tile
        begun by another come at `w`, for a tile that others end at `W + w`. What is not
        written is undefined. Unless the spec is `fused`, `tree_reduction` has to
        complete the tiles that have several pieces.
    """
    shape = -1, k_pages.shape[1], spec.units_per_page, spec.config.unit_tokens
    k_units, v_units = (x.reshape(*shape, spec.head_dim) for x in (k_pages, v_pages))
    halves = spec.halves
    slots = 2 * spec.num_workers * halves
    body = functools.partial(_kernel, spec, interpret is not None)
    kernel = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(q.shape[:3], jnp.float32),
            # Whoever reads 64 rows of the last slot reads beyond it.
            jax.ShapeDtypeStruct(
                (slots * spec.partial_rows + TILE_ROWS, spec.head_dim), q.dtype
            ),
            jax.ShapeDtypeStruct((slots, TILE_ROWS), jnp.float32),
        ],
        grid=(spec.num_workers,),
        grid_names=("worker",),
        num_threads=halves + 1,
        thread_name="warpgroup",
        scratch_types=_scratch(spec, q.dtype),
        kernel_name="grouped_partial_attention",
        compiler_params=COMPILER_PARAMS,
        **({} if interpret is None else {"interpret": interpret}),
    )
    return kernel(q, k_units, v_units, masks, row_position, unit, tile, worker, flags)


def _scratch(spec: KernelSpec, dtype) -> dict:
    """Return what a block of threads has in shared memory, by the kernel's names."""
    config, halves, stages = spec.config, spec.halves, spec.config.stages
    tiled = tile_transforms(spec.head_dim, dtype.itemsize)
    queries = (halves, spec.room_queries, spec.group, spec.head_dim)
    units = spec.units_per_block

    def ring(buffer, copies: int) -> dict:
        return {
            "buffer": buffer,
            "full": plgpu.Barrier(num_barriers=stages, num_arrivals=copies),
            "free": plgpu.Barrier(num_barriers=stages, num_arrivals=halves),
        }

    def blocks():
        shape = (stages, config.block_tokens, spec.head_dim)
        return plgpu.SMEM(shape, dtype, transforms=tiled)

    def staging():
        tile = plgpu.SMEM((TILE_ROWS, spec.head_dim), dtype, transforms=tiled)
        return plgpu.RefUnion(plgpu.SMEM(queries[1:], dtype), tile)

    masks = (stages, units, spec.mask_fields, config.unit_tokens)
    return {
        "q_smem": plgpu.SMEM(queries, dtype),
        "q_full": plgpu.Barrier(num_arrivals=halves),
        "q_free": plgpu.Barrier(num_arrivals=halves),
        "keys": ring(blocks(), spec.copies_per_block),
        "values": ring(blocks(), spec.copies_per_block),
        "masks": ring(plgpu.SMEM(masks, jnp.int32), units),
        "staging": [staging() for _ in range(halves)],
        "lse_smem": plgpu.SMEM((halves, TILE_ROWS), jnp.float32),
        "merge_lse_smem": plgpu.SMEM((TURNS, stages, TILE_ROWS), jnp.float32),
    }


def _kernel(
    spec,
    interpreted,
    q_ref,
    k_ref,
    v_ref,
    mask_ref,
    position_ref,
    unit_ref,
    tile_ref,
    worker_ref,
    flags_ref,
    out_ref,
    lse_ref,
    partial_out_ref,
    partial_lse_ref,
    *,
    q_smem,
    q_full,
    q_free,
    keys,
    values,
    masks,
    staging,
    lse_smem,
    merge_lse_smem,
):
    keys, values, masks = (
        Ring(**parts, stages=spec.config.stages) for parts in (keys, values, masks)
    )
    # A worker waits for later ones: they are the blocks that the GPU starts first.
    worker = spec.num_workers - 1 - lax.axis_index("worker")
    warpgroup = lax.axis_index("warpgroup")
    partials = Partials(
        partial_out_ref,
        partial_lse_ref,
        None if interpreted else flags_ref,
        merge_lse_smem,
    )

    @pl.when(warpgroup == spec.halves)
    def _copy():
        plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")
        producer = Producer(spec, worker, worker_ref, tile_ref, unit_ref)
        roles = (
            lambda: producer.queries(q_ref, q_smem, q_full, q_free),
            lambda: producer.pages(k_ref, keys, partials, 0),
            lambda: producer.pages(v_ref, values, partials, 1),
            lambda: producer.masks(mask_ref, masks),
        )

        @pl.kernel(mesh=plgpu.WarpMesh(axis_name="warp"))
        def copy_by_warp():
            warp = lax.axis_index("warp")
            for index, role in enumerate(roles):
                pl.when(warp == index)(role)

        copy_by_warp()

    @pl.when(warpgroup < spec.halves)
    def _compute():
        plgpu.set_max_registers(COMPUTING_REGISTERS[spec.halves], action="increase")
        consumer = Consumer(
            spec, worker, warpgroup, keys, values, masks, merge_lse_smem, interpreted
        )
        share = work.Share.read(worker_ref, worker)
        output = Output(
            spec,
            worker,
            warpgroup,
            share,
            out_ref,
            lse_ref,
            partials,
            staging,
            lse_smem,
            interpreted,
        )

        def piece(piece: work.Piece, counts):
            plgpu.barrier_wait(q_full)
            queries = _load_queries(spec, q_smem.at[warpgroup], interpreted)
            plgpu.commit_smem()
            plgpu.barrier_arrive(q_free)
            if spec.head_dim > MAX_REGISTER_COLUMNS:
                queries = park(queries)
            positions = None
            if spec.window is not None:
                positions = plgpu.load(
                    position_ref.at[piece.index, warpgroup],
                    layout=TILE.row,
                    optimized=False,
                )
            state, counts = consumer.attend(piece, queries, positions, counts)
            if spec.fused:
                state, counts = lax.cond(
                    piece.left == 0,
                    lambda: consumer.merge(share, state, counts),
                    lambda: (state, counts),
                )
            first = consumer.first_query(piece.index)
            out, lse = normalise(TILE, state, (share.live - first) * spec.group)
            output.send(piece, first, out.astype(q_ref.dtype), lse)
            return counts

        def park(queries):
            """Move the queries to where wgmma reads them from shared memory."""
            _, tile = staging[0]
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            tile[...] = queries
            plgpu.commit_smem()
            return tile

        work.for_each_piece(spec, worker_ref, tile_ref, worker, piece, (I32(0), I32(0)))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _load_queries(spec: KernelSpec, ref, interpreted):
    """Load [room, G, D] shared memory to [64, D] registers; the last rows are junk."""
    rows = spec.room_queries * spec.group
    if interpreted:
        return ref[...].reshape(rows, spec.head_dim)[:TILE_ROWS]
    ref = ref.reshape(rows, spec.head_dim).at[pl.ds(0, TILE_ROWS)]
    return plgpu.load(ref, layout=TILE.layout, optimized=False)
