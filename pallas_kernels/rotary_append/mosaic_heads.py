"""One block of threads: scales, rotates, checks and stores the heads of a token."""

from collections.abc import Iterator
from typing import NamedTuple

from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from ..mosaic.instructions import i32
from ..mosaic.vectors import (
    across_warps,
    inverse_rms,
    items,
    load,
    narrow,
    spread,
    store,
    widen,
)

SCALAR = plgpu.Layout.WG_SPLAT
REF = plgpu.RefType()
PAIRS = 4
"""Rotary pairs that a thread turns at a time."""

ALL_LANES = 0xFFFFFFFF
EXPONENTS = {"bf16": 0x7F80, "f16": 0x7C00}
"""Bits of the exponent: all are set in infinities and NaN, and in nothing else."""


class _Part(NamedTuple):
    """The low and high elements of some pairs of a head, in registers of a thread."""

    head: ir.Value
    at: tuple[ir.Value, ir.Value]
    low: ir.Value
    high: ir.Value
    inside: ir.Value | None


def append_heads(
    row, scratch, source, angles, targets, first_q, first_kv, stored, *, counts, eps
):
    """Scale, rotate and store the heads of some KV heads of a token.

    What is stored is `finite_projections`: where a key or value is not finite, both
    are stored as zeros, and the queries that read them become NaN.

    Args:
        row: [E] bfloat16 ref in global memory, what the heads were projected from; they
            are divided by its root mean square.
        scratch: two refs in shared memory, [WARPS] float32 and [WARPS] int32.
        source: [H + 2 K, D] ref in global memory, of the dtype of `row`.
        angles: two [D / 2] float32 refs in global memory, cosines and sines.
        targets: [H, D] and twice [K, D] refs in global memory, of the dtype of
            `source`: the token's queries, keys and values.
        first_q: number of the first query head.
        first_kv: number of the first KV head.
        stored: whether to store keys and values, 1 or 0.
        counts: static, number of KV heads, at most 32, and of the query heads of each.
        eps: added to the mean square.
    """
    num_kv, num_each = counts
    half = source.shape[-1] // 2
    num_q_heads, num_kv_heads = targets[0].shape[0], targets[1].shape[0]

    @plgpu.inline_mgpu(arg_types=(*[REF] * 9, *[SCALAR] * 3))
    def append(_, row, scratch, scratch_bits, source, cos, sin, q, k, v, *scalars):
        first_q, first_kv, stored = (x.registers.item() for x in scalars)
        first_k = arith.addi(first_kv, i32(num_q_heads))
        first_v = arith.addi(first_k, i32(num_kv_heads))

        def load_parts(first, heads):
            return list(_load(source, first, heads, half))

        queries = load_parts(first_q, num_kv * num_each)
        keys, values = load_parts(first_k, num_kv), load_parts(first_v, num_kv)
        tables = [
            [[load(x, [part.at[0]], PAIRS) for x in (cos, sin)] for part in parts]
            for parts in (queries, keys)
        ]
        scale = spread(inverse_rms(row, scratch, eps), PAIRS)
        element = ir.MemRefType(source.type).element_type
        queries, keys = (
            [_turn(part, scale, *table) for part, table in zip(*pairs, strict=True)]
            for pairs in zip((queries, keys), tables, strict=True)
        )
        values = [_map(part, lambda x: arith.mulf(x, scale)) for part in values]
        queries, keys, values = (
            [_map(part, lambda x: narrow(x, element)) for part in parts]
            for parts in (queries, keys, values)
        )
        spoilt = _any_thread(_not_finite([*keys, *values]), scratch_bits)
        is_stored = arith.cmpi(arith.CmpIPredicate.ne, stored, i32(0))
        for part in queries:
            kv_head = arith.divui(part.head, i32(num_each))
            _store(q, first_q, part, spoilt, kv_head, float("nan"), None)
        for target, parts in (k, keys), (v, values):
            for part in parts:
                _store(target, first_kv, part, spoilt, part.head, 0.0, is_stored)

    refs = row, *scratch, source, *angles, *targets
    append(*refs, first_q, first_kv, stored)


def _load(source, first, heads: int, half: int) -> Iterator[_Part]:
    """Yield a thread's parts of the heads from `first` on, as float32.

    With D = 16 and PAIRS = 4, item 3 is part 1 of head 1: elements 4:8 and 12:16.
    """
    parts = half // PAIRS
    for item, inside in items(heads * parts):
        head, part = arith.divui(item, i32(parts)), arith.remui(item, i32(parts))
        low = arith.muli(part, i32(PAIRS))
        at = low, arith.addi(low, i32(half))
        row = arith.addi(first, head)
        first_half, second_half = (widen(load(source, [row, x], PAIRS)) for x in at)
        yield _Part(head, at, first_half, second_half, inside)


def _map(part: _Part, function) -> _Part:
    return part._replace(low=function(part.low), high=function(part.high))


def _turn(part: _Part, scale, cos, sin) -> _Part:
    """Return a part scaled and turned by its angles."""
    a, b = arith.mulf(part.low, scale), arith.mulf(part.high, scale)
    low = arith.subf(arith.mulf(a, cos), arith.mulf(b, sin))
    high = arith.addf(arith.mulf(b, cos), arith.mulf(a, sin))
    return part._replace(low=low, high=high)


def _not_finite(parts: list[_Part]):
    """Return an i32 whose bit `h` is set where a part of head `h` is not finite."""
    bits, narrow_int = i32(0), ir.IntegerType.get_signless(16)
    for part in parts:
        for values in (part.low, part.high):
            mask = utils.c(EXPONENTS[str(values.type.element_type)], narrow_int)
            kind = ir.VectorType.get(values.type.shape, narrow_int)
            exponents = arith.andi(
                arith.bitcast(kind, values), vector.broadcast(kind, mask)
            )
            greatest = vector.reduction(
                narrow_int, vector.CombiningKind.MAXUI, exponents
            )
            bad = arith.cmpi(arith.CmpIPredicate.eq, greatest, mask)
            bit = arith.shli(i32(1), part.head)
            bits = arith.ori(bits, arith.select(bad, bit, i32(0)))
    return bits


def _any_thread(bits, scratch):
    """Return the bits that any thread of the warpgroup has set."""
    lanes = utils.c(ALL_LANES, ir.IntegerType.get_signless(32))
    bits = utils.redux(bits, lanes, utils.ReductionKind.OR)
    return across_warps(bits, scratch, i32(0), arith.ori)


def _store(target, first, part: _Part, spoilt, bit, instead: float, wanted) -> None:
    """Store a part in `target`, or a value instead of it where a bit is set."""
    mine = arith.andi(spoilt, arith.shli(i32(1), bit))
    mine = arith.cmpi(arith.CmpIPredicate.ne, mine, i32(0))
    inside = part.inside
    if wanted is not None:
        inside = wanted if inside is None else arith.andi(inside, wanted)
    row = arith.addi(first, part.head)
    for at, values in zip(part.at, (part.low, part.high), strict=True):
        other = utils.c(instead, values.type)
        store(target, [row, at], arith.select(mine, other, values), inside)
