"""Work on vectors of memory, thread by thread, for which Pallas has no layout.

The functions write instructions of one warpgroup into `plgpu.inline_mgpu`. Each loads
all that it needs before it stores anything, since the compiler cannot know that what is
stored is not what is loaded next.
"""

from collections.abc import Iterator

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, scf, vector

from .instructions import WARP_LANES, WARPGROUP_THREADS, i32, index_of

VECTOR = 8
"""Elements of 2 bytes that a thread loads at a time."""

WARPS = WARPGROUP_THREADS // WARP_LANES


def inverse_rms(row, scratch, eps: float):
    """Return 1 / sqrt(mean(row^2) + eps), float32, in every thread.

    Args:
        row: [E] bfloat16 ref, `E` a multiple of VECTOR.
        scratch: [WARPS] float32 ref in shared memory.
        eps: added to the mean.
    """
    [width] = ir.MemRefType(row.type).shape
    squares = float32(0.0)
    for at, inside in items(width // VECTOR):
        values = widen(load(row, [arith.muli(at, i32(VECTOR))], VECTOR))
        square = vector.reduction(
            ir.F32Type.get(), vector.CombiningKind.ADD, arith.mulf(values, values)
        )
        if inside is not None:
            square = arith.select(inside, square, float32(0.0))
        squares = arith.addf(squares, square)
    mean = arith.mulf(_sum(squares, scratch), float32(1.0 / width))
    return call("rsqrt.approx.ftz.f32", arith.addf(mean, float32(eps)))


def _sum(value, scratch):
    """Return the sum over a warpgroup's threads, always in one order."""
    for distance in (16, 8, 4, 2, 1):
        value = arith.addf(value, utils.shfl_bfly(value, distance))
    return across_warps(value, scratch, float32(0.0), arith.addf)


def across_warps(value, scratch, start, combine):
    """Combine a value of each warp with those of the others, always in one order.

    Args:
        value: the warp's value, the same in all its lanes.
        scratch: [WARPS] ref in shared memory.
        start: what the first warp's value is combined with.
        combine: takes what was combined so far and the next warp's value.

    Returns:
        The combined values of all warps, in every thread.
    """
    thread = arith.remui(utils.thread_idx(), i32(WARPGROUP_THREADS))
    warp = arith.divui(thread, i32(WARP_LANES))
    # All lanes of a warp store the same value.
    memref.store(value, scratch, [index_of(warp)])
    utils.warpgroup_barrier()
    total = start
    for number in range(WARPS):
        part = memref.load(scratch, [index_of(i32(number))])
        total = combine(total, part)
    return total


def items(count: int, thread=None) -> Iterator[tuple]:
    """Yield the items of `count` that a thread has; neighbours go to neighbours.

    Of 130 items thread 0 has 0 and 128, thread 1 has 1 and 129, thread 2 has 2 and, not
    its own, 129.

    Args:
        count: number of items.
        thread: i32, the thread's index in its block; read here if None.

    Yields:
        An i32 item, and whether it is the thread's own, None if it surely is; a thread
        without one is given the last.
    """
    thread = utils.thread_idx() if thread is None else thread
    thread = arith.remui(thread, i32(WARPGROUP_THREADS))
    for begin in range(0, count, WARPGROUP_THREADS):
        item = arith.addi(thread, i32(begin))
        if begin + WARPGROUP_THREADS <= count:
            yield item, None
        else:
            inside = arith.cmpi(arith.CmpIPredicate.ult, item, i32(count))
            yield arith.minui(item, i32(count - 1)), inside


def load(ref, at, count: int):
    """Return [count] elements from `at` on, which is a multiple of `count`."""
    element = ir.MemRefType(ref.type).element_type
    kind = ir.VectorType.get((count,), element)
    size = count * utils.bytewidth(element)
    return llvm.load(kind, pointer(ref, at), alignment=size)


def store(ref, at, values, inside) -> None:
    """Store what `load` loads, in threads where `inside` is true or None."""
    count, size = values.type.shape[0], utils.bytewidth(values.type.element_type)
    if inside is None:
        llvm.store(values, pointer(ref, at), alignment=count * size)
        return
    branch = scf.IfOp(inside)
    with ir.InsertionPoint(branch.then_block):
        llvm.store(values, pointer(ref, at), alignment=count * size)
        scf.yield_([])


def pointer(ref, at):
    """Return a pointer to the element of a ref at some indices."""
    element = ir.MemRefType(ref.type).element_type
    *slices, last = at
    for index in slices:
        ref = utils.memref_slice(ref, (index_of(index),))
    return utils.getelementptr(utils.memref_ptr(ref), [last], element)


def widen(values):
    """Return a vector of 2-byte floats as float32."""
    return arith.extf(_like(values, ir.F32Type.get()), values)


def narrow(values, element):
    """Return a vector of float32 as another type."""
    return arith.truncf(_like(values, element), values)


def spread(value, count: int):
    """Return a vector of `count` times the same float32."""
    return vector.broadcast(ir.VectorType.get((count,), value.type), value)


def float32(value: float):
    """Return a constant of the kernel."""
    return utils.c(value, ir.F32Type.get())


def call(instruction: str, value):
    """Return what an instruction from float32 to float32 makes of a value."""
    kind = ir.F32Type.get()
    return llvm.inline_asm(kind, [value], f"{instruction} $0, $1;", "=f,f")


def _like(values, element):
    return ir.VectorType.get(values.type.shape, element)
