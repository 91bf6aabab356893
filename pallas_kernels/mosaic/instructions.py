"""Instructions that Pallas does not offer: flags between blocks, scattered stores.

The Mosaic GPU interpreter knows none of them. It runs blocks of threads one after
another, so flags are not needed there; `store_by_row` has a twin of plain stores.
"""

from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, scf

WARP_LANES = 32
WARPGROUP_THREADS = 128

_AWAIT = """{
.reg .pred lowered;
.reg .b32 value;
WAIT:
ld.acquire.gpu.b32 value, [$0];
setp.eq.b32 lowered, value, 0;
@lowered bra WAIT;
st.relaxed.gpu.b32 [$0], 0;
}"""

_RAISE = "fence.proxy.async; st.release.gpu.b32 [$0], 1;"


def raise_flag(flag) -> None:
    """Set a flag once everything that this warpgroup stored is seen by the GPU.

    Its stores and copies must have ended (`wait_smem_to_gmem(0)`).

    Args:
        flag: [] int32 ref in global memory.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
    def release(_, flag):
        with utils.single_thread(scope=utils.ThreadSubset.WARPGROUP):
            _run(_RAISE, flag)

    release(flag)  # pyright: ignore[reportCallIssue]


def await_flags(flags, worker, begin, step: int, stop, halves) -> None:
    """Wait in one warp for flags and lower them; later copies see what they mean.

    The lanes wait side by side, as a wait takes a round trip to the L2 cache.

    Args:
        flags: [W, halves] int32 ref in global memory. Flag `i` is that of half
            `i % halves` of worker `worker + i // halves`.
        worker: worker of flag 0.
        begin: first flag to wait for; the flags are `begin, begin + step, ..`, at most
            32 of them.
        step: distance from flag to flag.
        stop: one past the last flag.
        halves: halves of a worker that raise flags, 1 or all.
    """
    scalar = plgpu.Layout.WG_SPLAT

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *[scalar] * 4))
    def acquire(_, flags, *scalars):
        worker, begin, stop, halves = (x.registers.item() for x in scalars)
        lane = arith.remui(utils.thread_idx(), i32(WARP_LANES))
        index = arith.addi(begin, arith.muli(lane, i32(step)))
        wanted = arith.cmpi(arith.CmpIPredicate.slt, index, stop)
        branch = scf.IfOp(wanted)
        with ir.InsertionPoint(branch.then_block):
            row = arith.addi(worker, arith.divui(index, halves))
            at = row, arith.remui(index, halves)
            _run(_AWAIT, utils.memref_slice(flags, tuple(map(index_of, at))))
            scf.yield_([])
        utils.warp_barrier()
        _run("fence.proxy.async;")

    acquire(flags, worker, begin, stop, halves)


def _run(code: str, ref=None) -> None:
    void = ir.Type.parse("!llvm.void")
    pointers = [] if ref is None else [utils.memref_ptr(ref)]
    constraints = ",".join(["l"] * len(pointers) + ["~{memory}"])
    llvm.inline_asm(void, pointers, code, constraints, has_side_effects=True)


def store_by_row(values, out, first, head, rows: int) -> None:
    """Store one value per row of a tile, where the tile's queries end too.

    Args:
        values: [64] ref in shared memory, written before a barrier of the warpgroup.
        out: [Q, K, G] ref in global memory; row `r` is query `first + r // G`, head
            `r % G`.
        first: first query of the tile; may be at or above `Q`.
        head: number of the KV head.
        rows: rows of the tile that belong to queries.
    """
    num_queries, _, group = out.shape
    scalar = plgpu.Layout.WG_SPLAT

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType(), scalar, scalar))
    def store(_, values, out, first, head):
        first, head = first.registers.item(), head.registers.item()
        thread = arith.remui(utils.thread_idx(), i32(WARPGROUP_THREADS))
        query = arith.addi(first, arith.divui(thread, i32(group)))
        in_tile = arith.cmpi(arith.CmpIPredicate.ult, thread, i32(rows))
        in_out = arith.cmpi(arith.CmpIPredicate.ult, query, i32(num_queries))
        branch = scf.IfOp(arith.andi(in_tile, in_out))
        with ir.InsertionPoint(branch.then_block):
            value = memref.load(values, [index_of(thread)])
            at = query, head, arith.remui(thread, i32(group))
            memref.store(value, out, list(map(index_of, at)))
            scf.yield_([])

    store(values, out, first, head)  # pyright: ignore[reportCallIssue]


def i32(value: int):
    """Return a constant of the kernel."""
    return utils.c(value, ir.IntegerType.get_signless(32))


def index_of(value):
    """Return an integer as an index of a ref."""
    return arith.index_cast(ir.IndexType.get(), value)
