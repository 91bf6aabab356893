"""Element-wise work on heads, thread by thread: Pallas has no layout for such rows."""

from collections.abc import Callable

from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref, scf

from deft_jax.pallas_kernels.mosaic_inline import WARPGROUP_THREADS, i32, index_of

SCALAR = plgpu.Layout.WG_SPLAT


def rotate_heads(source, first, cos, sin, target, to, count: int) -> None:
    """Rotates heads and stores them; rotary pairs are the halves of a head.

    Args:
        source: [heads, D] bfloat16 or float16 ref in global memory.
        first: head of `source` to begin with.
        cos: [D / 2] float32 ref in global memory.
        sin: likewise.
        target: [heads, D] ref in global memory, of the dtype of `source`.
        to: head of `target` to begin with.
        count: heads.
    """
    half = source.shape[-1] // 2
    refs = [plgpu.RefType()] * 4

    @plgpu.inline_mgpu(arg_types=(*refs, SCALAR, SCALAR))
    def rotate(_, source, cos, sin, target, first, to):
        first, to = first.registers.item(), to.registers.item()
        float32, stored = ir.F32Type.get(), ir.MemRefType(source.type).element_type

        def load(head, at):
            value = memref.load(source, [index_of(arith.addi(first, head)), at])
            return arith.extf(float32, value)

        def one(head, pair):
            low, high = index_of(pair), index_of(arith.addi(pair, i32(half)))
            a, b = load(head, low), load(head, high)
            c, s = (memref.load(table, [low]) for table in (cos, sin))
            turned = (
                arith.subf(arith.mulf(a, c), arith.mulf(b, s)),
                arith.addf(arith.mulf(b, c), arith.mulf(a, s)),
            )
            row = index_of(arith.addi(to, head))
            for value, at in zip(turned, (low, high), strict=True):
                memref.store(arith.truncf(stored, value), target, [row, at])

        _for_each(count, half, one)

    rotate(source, cos, sin, target, first, to)  # pyright: ignore[reportCallIssue]


def copy_heads(source, first, target, to, count: int) -> None:
    """Stores heads as they are; the arguments are those of `rotate_heads`."""
    width = source.shape[-1]

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType(), SCALAR, SCALAR))
    def copy(_, source, target, first, to):
        first, to = first.registers.item(), to.registers.item()

        def one(head, column):
            at = index_of(column)
            value = memref.load(source, [index_of(arith.addi(first, head)), at])
            memref.store(value, target, [index_of(arith.addi(to, head)), at])

        _for_each(count, width, one)

    copy(source, target, first, to)  # pyright: ignore[reportCallIssue]


def _for_each(rows: int, columns: int, body: Callable) -> None:
    """Runs `body(row, column)` for all; neighbours in a row go to neighbour threads."""
    thread = arith.remui(utils.thread_idx(), i32(WARPGROUP_THREADS))
    total = rows * columns
    for begin in range(0, total, WARPGROUP_THREADS):
        index = arith.addi(thread, i32(begin))

        def place(index=index):
            body(arith.divui(index, i32(columns)), arith.remui(index, i32(columns)))

        if begin + WARPGROUP_THREADS <= total:
            place()
            continue
        inside = arith.cmpi(arith.CmpIPredicate.ult, index, i32(total))
        branch = scf.IfOp(inside)
        with ir.InsertionPoint(branch.then_block):
            place()
            scf.yield_([])
