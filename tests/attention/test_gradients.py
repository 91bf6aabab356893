"""Derivatives of the op: those of the oracle, which are checked by differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention import device as device_module
from deft_jax.attention.api import tree_attention
from tests.support.attention_checks import Case, Inputs, inputs
from tests.support.forest_plans import Limits, Plan
from tests.support.forests import grow
from tests.support.kernels.kernel_cases import (
    COMPILED,
    KERNELS,
    arguments,
    num_calls,
)
from tests.support.shapes import Heads

LIMITS = Limits(nodes=8, pages=10, page_size=4, rows=9)
CASES = {
    "plain": Case(Heads(4, 2, 8), LIMITS),
    "window_and_cap": Case(Heads(2, 1, 8), LIMITS, window=3, soft_cap=2.0, scale=0.3),
}


def example(case: Case) -> Inputs:
    """Return arguments of a small forest with idle rows and empty slots."""
    args = inputs(case, grow(Plan(LIMITS, nodes=6, reach=4, tokens=(3, 6))), seed=1)
    assert 2 < args.grouping.num_live < LIMITS.rows
    return args


def loss(implementation: str, case: Case, grouping, q, k, v):
    """Return a number that depends on everything that is defined."""
    options = {**case.options, "implementation": implementation}
    out, lse = tree_attention(q, k, v, grouping, **options)
    weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
    return jnp.sum(weight * out) + jnp.sum(jnp.where(lse > -jnp.inf, jnp.sin(lse), 0))


def gradients(implementation: str, case: Case, args: Inputs, *arrays):
    function = functools.partial(loss, implementation, case, args.grouping)
    return jax.jit(jax.grad(function, argnums=(0, 1, 2)))(*arrays)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reverse_mode_inside_jit(case: Case):
    args = example(case)
    arrays = args.q, *args.clean
    ours, oracle = (gradients(x, case, args, *arrays) for x in ("xla", "reference"))
    for got, expected in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert np.linalg.norm(got) > 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_gradients_are_what_differences_give(case: Case, implementation: str):
    args = example(case)
    arrays = args.q, *args.clean
    function = jax.jit(functools.partial(loss, implementation, case, args.grouping))
    found = gradients(implementation, case, args, *arrays)
    rng = np.random.default_rng(0)
    for index, gradient in enumerate(found):
        way = jnp.asarray(rng.normal(size=gradient.shape), jnp.float32)
        step = 1e-2
        ahead, back = (
            function(*arrays[:index], arrays[index] + s * way, *arrays[index + 1 :])
            for s in (step, -step)
        )
        slope = (ahead - back) / (2 * step)
        np.testing.assert_allclose(jnp.sum(gradient * way), slope, rtol=2e-2, atol=2e-2)


def test_forward_mode_gives_the_same_derivative():
    case = CASES["plain"]
    args = example(case)
    arrays = args.q, *args.clean
    ways = [jnp.cos(x) for x in arrays]
    function = functools.partial(loss, "xla", case, args.grouping)
    _, slope = jax.jit(lambda *x: jax.jvp(function, x, tuple(ways)))(*arrays)
    found = gradients("xla", case, args, *arrays)
    total = sum(jnp.sum(g * way) for g, way in zip(found, ways, strict=True))
    np.testing.assert_allclose(slope, total, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_what_nobody_sees_does_not_reach_gradients(implementation: str):
    """Slots and idle rows hold NaN; their own gradients are zeros."""
    case = CASES["plain"]
    args = example(case)
    live = jnp.arange(LIMITS.rows)[:, None, None] < args.grouping.num_live
    q = jnp.where(live, args.q, jnp.nan)
    seen = (args.grouping.slot_first < args.grouping.slot_end)[:, None, :, None]
    bad = [jnp.where(seen, x, jnp.nan) for x in args.clean]
    clean = gradients(implementation, case, args, args.q, *args.clean)
    for got, expected in zip(
        gradients(implementation, case, args, q, *bad), clean, strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(jnp.where(live, 0, clean[0]), 0)
    np.testing.assert_array_equal(jnp.where(seen, 0, clean[1]), 0)


def test_the_kernels_lower_as_without_a_rule(monkeypatch: pytest.MonkeyPatch):
    """They hold references, which JAX takes out of no function with a rule."""
    monkeypatch.setattr(device_module, "compute_capability", lambda device=None: (9, 0))
    case = COMPILED["llama3_8b-64"]
    function = functools.partial(tree_attention, implementation="mosaic_gpu")
    traced = jax.jit(function).trace(*arguments(case))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = num_calls(case, KERNELS["hopper"])
    assert text.count("custom_call @mosaic_gpu") == calls


@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_kernels_say_that_they_have_none(capability, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        device_module, "compute_capability", lambda device=None: capability
    )
    limits = Limits(nodes=8, pages=10, page_size=16, rows=9)
    case = Case(Heads(4, 2, 64), limits, dtype="bfloat16")
    args = inputs(case, grow(Plan(limits, nodes=6, reach=4)), seed=1)
    line = (
        "implementation 'mosaic_gpu' has no gradient; differentiate tree_attention "
        "with implementation='xla'"
    )
    with pytest.raises(NotImplementedError) as raised:
        gradients("mosaic_gpu", case, args, args.q, *args.clean)
    assert str(raised.value) == line
