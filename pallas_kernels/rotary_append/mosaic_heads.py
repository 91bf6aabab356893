"""Scales, rotates and stores heads."""

from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

from ..mosaic.instructions import i32
from ..mosaic.rows import inverse_rms, items, load, narrow, spread, store, widen

SCALAR = plgpu.Layout.WG_SPLAT
REF = plgpu.RefType()
PAIRS = 4
"""Rotary pairs that a thread turns at a time."""


def rotate_heads(row, scratch, source, first, cos, sin, target, to, *, count, eps):
    """Rotates heads and stores them; rotary pairs are the halves of a head.

    Args:
        row: [E] bfloat16 or float16 ref in global memory, what the heads were projected
            from; they are divided by its root mean square.
        scratch: [WARPS] float32 ref in shared memory.
        source: [heads, D] ref in global memory, of the dtype of `row`.
        first: head of `source` to begin with.
        cos: [D / 2] float32 ref in global memory.
        sin: likewise.
        target: [heads, D] ref in global memory, of the dtype of `source`.
        to: head of `target` to begin with.
        count: heads, static.
        eps: added to the mean square.
    """
    half = source.shape[-1] // 2
    parts = half // PAIRS

    @plgpu.inline_mgpu(arg_types=(*[REF] * 6, SCALAR, SCALAR))
    def rotate(_, row, scratch, source, cos, sin, target, first, to):
        first, to = first.registers.item(), to.registers.item()
        loaded = []
        for item, inside in items(count * parts):
            head, part = arith.divui(item, i32(parts)), arith.remui(item, i32(parts))
            low = arith.muli(part, i32(PAIRS))
            high = arith.addi(low, i32(half))
            at = arith.addi(first, head)
            heads = [widen(load(source, [at, x], PAIRS)) for x in (low, high)]
            tables = [load(table, [low], PAIRS) for table in (cos, sin)]
            to_row = arith.addi(to, head)
            loaded.append((*heads, *tables, to_row, low, high, inside))
        scale = spread(inverse_rms(row, scratch, eps), PAIRS)
        for a, b, c, s, to_row, low, high, inside in loaded:
            a, b = arith.mulf(a, scale), arith.mulf(b, scale)
            turned = (
                arith.subf(arith.mulf(a, c), arith.mulf(b, s)),
                arith.addf(arith.mulf(b, c), arith.mulf(a, s)),
            )
            for values, at in zip(turned, (low, high), strict=True):
                values = narrow(values, ir.MemRefType(target.type).element_type)
                store(target, [to_row, at], values, inside)

    refs = row, scratch, source, cos, sin, target
    rotate(*refs, first, to)  # pyright: ignore[reportCallIssue]


def copy_heads(row, scratch, source, first, target, to, *, count, eps):
    """Store heads as they are but for the scale; arguments as of `rotate_heads`."""
    parts = source.shape[-1] // PAIRS

    @plgpu.inline_mgpu(arg_types=(*[REF] * 4, SCALAR, SCALAR))
    def copy(_, row, scratch, source, target, first, to):
        first, to = first.registers.item(), to.registers.item()
        loaded = []
        for item, inside in items(count * parts):
            head, part = arith.divui(item, i32(parts)), arith.remui(item, i32(parts))
            at = arith.muli(part, i32(PAIRS))
            values = widen(load(source, [arith.addi(first, head), at], PAIRS))
            loaded.append((values, [arith.addi(to, head), at], inside))
        scale = spread(inverse_rms(row, scratch, eps), PAIRS)
        for values, at, inside in loaded:
            values = narrow(
                arith.mulf(values, scale), ir.MemRefType(target.type).element_type
            )
            store(target, at, values, inside)

    refs = row, scratch, source, target
    copy(*refs, first, to)  # pyright: ignore[reportCallIssue]
