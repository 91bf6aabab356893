"""Zeros in place of the values of tokens that no query sees, in shared memory.

Attention weighs them by 0, but 0 times NaN is NaN: what such a slot holds would reach
every row of the tile. The Mosaic GPU interpreter knows none of this.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, nvvm, scf, vector

from .instructions import WARPGROUP_THREADS, i32, index_of
from .vectors import items, pointer

VECTOR = 8
"""Elements of 2 bytes that a thread stores at a time."""

STRIP = 8
"""Rows of shared memory whose tiles lie side by side."""

PER_THREAD = plgpu.Layout.WG_STRIDED((WARPGROUP_THREADS,), vec_size=1)

_BITS = plgpu.ShapeDtypeStruct((WARPGROUP_THREADS,), jnp.int32, layout=PER_THREAD)
_SIGN = -(2**31)
"""The bit of an int32 that tells that some thread has another bit set."""

_ANY = """{
.reg .pred mine;
.reg .pred any;
setp.ne.b32 mine, $1, 0;
bar.red.or.pred any, $2, %d, mine;
selp.b32 $0, 1, 0, any;
}"""


def find_unseen(ranks, transforms: tuple):
    """Find the tokens of a block whose range of ranks is empty.

    Args:
        ranks: [tokens] or [units, U] int32 ref in shared memory: first rank that sees
            the token and, 16 bits up, one past the last.
        transforms: layout in shared memory of the values, as `tile_transforms` gives
            it.

    Returns:
        [128] int32, one for each thread: bit `i` is set if no query sees the token of
        the thread's `i`-th item in `_row_items`.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=_BITS)
    def find(_, ranks):
        shape = ir.MemRefType(ranks.type).shape
        tokens, bits = math.prod(shape), i32(0)
        parts = _parts(tokens, transforms[0].tiling[-1])
        for number, (row, _) in enumerate(_row_items(tokens, parts)):
            at = [row]
            if len(shape) == 2:
                at = [f(row, i32(shape[1])) for f in (arith.divui, arith.remui)]
            packed = memref.load(ranks, [index_of(x) for x in at])
            first, end = arith.andi(packed, i32(0xFFFF)), arith.shrui(packed, i32(16))
            empty = arith.cmpi(arith.CmpIPredicate.uge, first, end)
            bit = arith.select(empty, i32(1 << number), i32(0))
            bits = arith.ori(bits, bit)
        return _per_thread(bits)

    return find(ranks)  # pyright: ignore[reportCallIssue]


def tell_unseen(unseen, *, commit: bool = True):
    """Tell all threads of the warpgroup whether there is any unseen token: a barrier.

    Args:
        unseen: [128] int32, what `find_unseen` returned.
        commit: whether it also does what `commit_smem` does: what was read before comes
            before later bulk copies to the same place. Needs compute capability 9.0.

    Returns:
        [128] int32 with the same bits and, if there is such a token, bit 31.
    """

    @plgpu.inline_mgpu(arg_types=(PER_THREAD,), return_type=_BITS)
    def tell(_, bits):
        bits = _value(bits)
        if commit:
            shared = nvvm.SharedSpace.shared_cta
            nvvm.fence_proxy(nvvm.ProxyKind.async_shared, space=shared)
        barrier = utils.warpgroup_barrier_idx(sync=False)
        found = llvm.inline_asm(
            bits.type,
            [bits, barrier],
            _ANY % WARPGROUP_THREADS,
            "=r,r,r,~{memory}",
            has_side_effects=True,
        )
        found = arith.cmpi(arith.CmpIPredicate.ne, found, i32(0))
        return _per_thread(arith.ori(bits, arith.select(found, i32(_SIGN), i32(0))))

    return tell(unseen)  # pyright: ignore[reportCallIssue]


def zero_unseen(values, unseen, transforms: tuple, *, commit: bool = True) -> None:
    """Store zeros in the rows of unseen tokens.

    Several warpgroups may do the same at the same time.

    Args:
        values: [tokens, D] ref in shared memory, 2 bytes an element.
        unseen: [128] int32, what `tell_unseen` returned.
        transforms: layout of `values`, as `tile_transforms` gives it.
        commit: whether it ends with what `commit_smem` does, if there are such tokens;
            otherwise whoever reads the rows next needs a barrier.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(transforms), PER_THREAD))
    def zero(_, values, bits):
        bits = _value(bits)
        strips, _, _, width = ir.MemRefType(values.type).shape
        tokens = strips * STRIP
        parts = _parts(tokens, width)
        some = scf.IfOp(arith.cmpi(arith.CmpIPredicate.slt, bits, i32(0)))
        with ir.InsertionPoint(some.then_block):
            for number, (row, part) in enumerate(_row_items(tokens, parts)):
                mine = arith.andi(bits, i32(1 << number))
                branch = scf.IfOp(arith.cmpi(arith.CmpIPredicate.ne, mine, i32(0)))
                with ir.InsertionPoint(branch.then_block):
                    _zero_part(values, row, part, parts)
                    scf.yield_([])
            if commit:
                utils.commit_shared()
            scf.yield_([])

    zero(values, unseen)  # pyright: ignore[reportCallIssue]


def _per_thread(value):
    """Return an i32 of each thread as an array [128]."""
    shape, layout = (WARPGROUP_THREADS,), PER_THREAD.to_mgpu()
    return mgpu.FragmentedArray.splat(value, shape, layout, is_signed=True)


def _value(array):
    """Return the i32 of a thread in an array [128]."""
    [register] = array.registers.flat
    return vector.extract(register, [], ir.DenseI64ArrayAttr.get([0]))


def _zero_part(values, row, part, parts: int) -> None:
    """Store zeros in a part of a row of tiled shared memory.

    A row has some vectors in each of the tiles that lie side by side; a part of it has
    some of these vectors in every tile. The swizzle of a tile permutes the vectors of
    its rows, so which is which plays no role. Neighbours begin at different ones, lest
    they wait for the same bank: with 4 vectors in a tile, in two parts, the rows 0 .. 7
    begin with vector 0 0 1 1 2 2 3 3 in part 0, and with 2 2 3 3 0 0 1 1 in part 1.

    Args:
        values: [tokens / 8, D / width, 8, width] memref.
        row: i32, number of the row, one per token.
        part: part of the row, i32.
        parts: number of parts of a row, a power of 2.
    """
    kind = ir.MemRefType(values.type)
    _, tiles, _, width = kind.shape
    zeros = utils.c(0.0, ir.VectorType.get((VECTOR,), kind.element_type))
    vectors = width // VECTOR
    each = vectors // parts
    strip, line = arith.divui(row, i32(STRIP)), arith.remui(row, i32(STRIP))
    begin = arith.divui(line, i32(STRIP // vectors))
    begin = arith.xori(begin, arith.muli(part, i32(each)))
    for step in range(each):
        column = arith.muli(arith.xori(begin, i32(step)), i32(VECTOR))
        first = pointer(values, (strip, i32(0), line, column))
        for tile in range(tiles):
            offset = i32(tile * STRIP * width)
            at = utils.getelementptr(first, [offset], kind.element_type)
            llvm.store(zeros, at, alignment=2 * VECTOR)


def _parts(tokens: int, width: int) -> int:
    """Return in how many parts a row is divided, so that most threads have one."""
    return max(min(WARPGROUP_THREADS // tokens, width // VECTOR), 1)


def _row_items(tokens: int, parts: int) -> Iterator[tuple]:
    """Yield a token and a part of its row, both i32, for each item of a thread.

    With 64 tokens in 2 parts, thread 0 has part 0 of token 0, thread 64 part 1 of it.
    """
    # Read anew each time: an index that is kept takes a register from the logits.
    index = ir.IntegerType.get_signless(32)
    read = "mov.u32 $0, %tid.x;"
    thread = llvm.inline_asm(index, [], read, "=r", has_side_effects=True)
    for item, _ in items(tokens * parts, thread):
        yield arith.remui(item, i32(tokens)), arith.divui(item, i32(tokens))
