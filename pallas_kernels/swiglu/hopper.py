"""The scale of an RMSNorm and SwiGLU in one kernel.

XLA needs one kernel for the mean square and one for the gate; with the few rows of a
decode step, starting kernels is all that they cost.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from ..mosaic.compat import COMPILER_PARAMS
from ..mosaic.instructions import i32
from ..mosaic.vectors import (
    VECTOR,
    WARPS,
    call,
    float32,
    inverse_rms,
    items,
    load,
    narrow,
    spread,
    store,
    widen,
)

BLOCK = 2048
"""Columns of a block: two vectors per thread."""

LOG2_E = 1.4426950408889634
SCALAR = plgpu.Layout.WG_SPLAT


def takes(inputs: jax.Array, hidden: jax.Array) -> bool:
    """Return whether the kernel is made for arrays of these shapes and dtypes."""
    fits = inputs.shape[1] % VECTOR == 0 and hidden.shape[1] % (2 * VECTOR) == 0
    return fits and {inputs.dtype, hidden.dtype} == {jnp.dtype(jnp.bfloat16)}


def swiglu(inputs: jax.Array, hidden: jax.Array, *, eps: float) -> jax.Array:
    """Do what `swiglu_reference` does.

    Args:
        inputs: [Q, E] bfloat16, what `hidden` was projected from; it is divided by the
            root mean square of the rows.
        hidden: [Q, 2 F] bfloat16, gate and up projections side by side.
        eps: added to the mean square.

    Returns:
        [Q, F] silu(gate) * up.
    """
    num_rows, width = hidden.shape[0], hidden.shape[1] // 2
    kernel = plgpu.kernel(
        functools.partial(_kernel, eps),
        out_type=jax.ShapeDtypeStruct((num_rows, width), hidden.dtype),
        grid=(num_rows, pl.cdiv(width, BLOCK)),
        grid_names=("row", "block"),
        scratch_types=[plgpu.SMEM((WARPS,), jnp.float32)],
        kernel_name="swiglu",
        compiler_params=COMPILER_PARAMS,
    )
    return kernel(inputs, hidden)


def _kernel(eps, inputs_ref, hidden_ref, out_ref, scratch):
    row, block = lax.axis_index("row"), lax.axis_index("block")
    refs = inputs_ref.at[row], hidden_ref.at[row], out_ref.at[row], scratch

    @plgpu.inline_mgpu(arg_types=(*[plgpu.RefType()] * 4, SCALAR))
    def gate_columns(_, inputs, hidden, out, scratch, block):
        [width] = ir.MemRefType(out.type).shape
        first = arith.muli(block.registers.item(), i32(BLOCK))
        loaded = []
        for item, _ in items(BLOCK // VECTOR):
            column = arith.addi(first, arith.muli(item, i32(VECTOR)))
            inside = arith.cmpi(arith.CmpIPredicate.ult, column, i32(width))
            at = arith.minui(column, i32(width - VECTOR))
            gate = widen(load(hidden, [at], VECTOR))
            up = widen(load(hidden, [arith.addi(at, i32(width))], VECTOR))
            loaded.append((gate, up, at, inside))
        scale = spread(inverse_rms(inputs, scratch, eps), VECTOR)
        for gate, up, at, inside in loaded:
            gated = _silu_times(arith.mulf(gate, scale), arith.mulf(up, scale))
            element = ir.MemRefType(out.type).element_type
            store(out, [at], narrow(gated, element), inside)

    gate_columns(*refs, block)  # pyright: ignore[reportCallIssue]


def _silu_times(gate, up):
    """Return silu(gate) * up of vectors of float32."""
    product = arith.mulf(gate, up)
    for number in range(VECTOR):
        at = ir.DenseI64ArrayAttr.get([number])
        value = vector.extract(gate, [], at)
        power = call("ex2.approx.ftz.f32", arith.mulf(value, float32(-LOG2_E)))
        gated = call("rcp.approx.ftz.f32", arith.addf(power, float32(1.0)))
        scaled = arith.mulf(vector.extract(product, [], at), gated)
        product = vector.insert(scaled, product, [], at)
    return product
