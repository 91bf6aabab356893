"""Attention that is planned once: the same numbers, and arrays that fit the plan."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.attention import device as device_module
from deft_jax.attention.api import tree_attention
from deft_jax.attention.backend import Backend
from deft_jax.attention.grouping import Grouping
from deft_jax.attention.hopper import make_spec
from deft_jax.attention.plan import plan_attention
from deft_jax.attention.spec import AttentionSpec
from tests.support.attention_checks import SMALL, Case, attend, inputs
from tests.support.forest_plans import Plan, plans
from tests.support.forests import grow
from tests.support.jaxprs import count_scoped
from tests.support.kernels.kernel_cases import COMPILED, arguments
from tests.support.shapes import HEADS, Heads

CASES = {
    "plain": Case(HEADS["smollm2_135m"]),
    "window": Case(HEADS["smollm2_135m"], window=3),
    "soft_cap": Case(HEADS["gemma_2b"], dtype="bfloat16", soft_cap=3.0),
    "scale": Case(HEADS["smollm2_135m"], scale=0.05),
}
LAYERS = 3


def spec_of(case: Case) -> AttentionSpec:
    return AttentionSpec.create(
        case.heads,
        case.dtype,
        scale=case.scale,
        window=case.window,
        soft_cap=case.soft_cap,
    )


@functools.cache
def plan_once(case: Case, implementation: str):
    """Return a function of q, k, v [LAYERS, ...] and a grouping, with one plan."""

    def run(q, k, v, grouping):
        plan = plan_attention(grouping, spec_of(case), implementation=implementation)
        return [tree_attention(*layer, plan) for layer in zip(q, k, v, strict=True)]

    return jax.jit(run)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(data=st.data())
def test_a_plan_changes_no_bit(case: Case, implementation: str, data: st.DataObject):
    drawn = data.draw(plans(case.limits))
    forest = grow(drawn)
    layers = [inputs(case, forest, drawn.seed + i) for i in range(LAYERS)]
    q = jnp.stack([layer.q for layer in layers])
    k, v = (jnp.stack([layer.poisoned[i] for layer in layers]) for i in range(2))
    planned = plan_once(case, implementation)(q, k, v, layers[0].grouping)
    for layer, results in zip(layers, planned, strict=True):
        alone = attend(
            layer.q,
            *layer.poisoned,
            layer.grouping,
            **case.options,
            implementation=implementation,
        )
        for one, other in zip(results, alone, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture(params=[((9, 0), Backend.HOPPER), ((8, 0), Backend.PORTABLE)])
def gpu_backend(request, monkeypatch: pytest.MonkeyPatch) -> Backend:
    capability, backend = request.param
    monkeypatch.setattr(
        device_module, "compute_capability", lambda device=None: capability
    )
    return backend


@pytest.mark.parametrize("name", ["llama3_8b-64", "llama3_8b-window"])
def test_layers_of_one_plan_have_no_schedule_of_their_own(gpu_backend, name: str):
    case = COMPILED[name]

    def run(shares: bool, layers: int):
        def step(q, k, v, grouping):
            work = grouping
            options = {**case.options, "implementation": "mosaic_gpu"}
            if shares:
                spec = spec_of(case)
                work = plan_attention(grouping, spec, implementation="mosaic_gpu")
                assert work.backend is gpu_backend
                options = {}
            for _ in range(layers):
                q, _ = tree_attention(q, k, v, work, **options)
            return q

        return count_scoped(jax.make_jaxpr(step)(*arguments(case)).jaxpr, "grouping")

    once = run(True, 1)
    assert once > 50
    assert run(True, LAYERS) == once
    assert run(False, LAYERS) == LAYERS * once


def test_the_kernels_get_the_sizes_that_arrays_would_give(gpu_backend):
    if gpu_backend is not Backend.HOPPER:
        pytest.skip("make_spec is for Hopper")
    case = COMPILED["llama3_8b-window"]
    q, k_pages, _, grouping = arguments(case)
    spec = spec_of(case)
    plan = jax.eval_shape(
        lambda g: plan_attention(g, spec, implementation="mosaic_gpu"), grouping
    )
    assert plan.kernels.sizes == make_spec(q, k_pages, spec.logits)


def small_grouping() -> Grouping:
    case = CASES["plain"]
    return inputs(case, grow(Plan(SMALL, nodes=3, reach=2)), seed=0).grouping


def refused(message: str, call) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_options_beside_a_plan_are_refused():
    case = CASES["plain"]
    args = inputs(case, grow(Plan(SMALL, nodes=3, reach=2)), seed=0)
    plan = plan_attention(args.grouping, spec_of(case))
    refused(
        "a plan has its options: expected no scale, window, soft_cap or implementation "
        "beside it; give them to plan_attention",
        lambda: tree_attention(args.q, *args.clean, plan, window=4),
    )


def test_arrays_of_another_kind_are_refused():
    args = inputs(CASES["plain"], grow(Plan(SMALL, nodes=3, reach=2)), seed=0)
    spec = AttentionSpec.create(Heads(9, 9, 64), "bfloat16")
    plan = plan_attention(args.grouping, spec)
    refused(
        "the plan is for query heads, KV heads, head_dim, dtype and KV dtype "
        "(9, 9, 64, 'bfloat16', 'bfloat16'), got (9, 3, 64, 'float32', 'float32')",
        lambda: tree_attention(args.q, *args.clean, plan),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": Heads(5, 2, 64)}, "query heads must be a multiple of KV heads, got"),
        (
            {"dtype": "int8"},
            "dtype must be one of float32, bfloat16, float16, got int8",
        ),
        ({"dtype": "wide"}, "dtype must be one of float32, bfloat16, float16, got 'wi"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"scale": -1.0}, "scale must be above 0, got -1.0"),
    ],
)
def test_specs_that_cannot_be(options, message):
    arguments = {"heads": Heads(4, 2, 64), "dtype": "float32"} | options
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        AttentionSpec.create(**arguments)
    assert "\n" not in str(raised.value)


def test_a_plan_of_an_unknown_implementation_is_refused():
    spec = spec_of(CASES["plain"])
    with pytest.raises(ValueError, match="^implementation must be one of"):
        plan_attention(small_grouping(), spec, implementation="fast")
