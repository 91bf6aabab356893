"""The Hopper kernels in the Mosaic GPU interpreter, with its race detector."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from deft_jax.attention.hopper import tree_attention_mosaic
from deft_jax.attention.spec import Logits
from deft_jax.pallas_kernels.grouped_partial_attention.ring import Ring
from deft_jax.pallas_kernels.kernel_spec import KernelConfig
from tests.support.attention_checks import Case, Inputs, attend, inputs
from tests.support.forest_plans import Limits, Plan
from tests.support.forests import grow
from tests.support.kernels import interpreter_shim
from tests.support.kernels.interpreter_shim import RACE, races_raise
from tests.support.kernels.poison import poisoned
from tests.support.shapes import Heads

ERROR = 5e-3
LSE_ERROR = 1e-3
TWO_STAGES = KernelConfig(unit_tokens=16, block_tokens=64, stages=2)
"""So few that the rings wrap around in small trees."""

LIMITS = Limits(nodes=16, pages=32, page_size=16, rows=16)
LONG_PAGES = Limits(nodes=16, pages=16, page_size=32, rows=16)


def kernel_case(heads: Heads, limits: Limits = LIMITS, **options) -> Case:
    return Case(heads, limits, dtype="bfloat16", **options)


TREE = {"nodes": 14, "reach": 14, "tokens": (70, 5, 9), "seed": 28}
"""Has blocks of all four classes, where both halves of a tile have queries."""
TWO_TREES = {"nodes": 16, "roots": 0.1, "reach": 5, "tokens": (5, 40), "holes": 0.3}
CHUNKS = {"nodes": 4, "reach": 2, "tokens": (70,), "queries": 9}

# Case, plan of the forest, workers.
CASES = {
    "decode": (kernel_case(Heads(16, 2, 64)), TREE, 3),
    "group_of_3": (kernel_case(Heads(3, 1, 64)), TREE, 2),
    "window_and_soft_cap": (
        kernel_case(Heads(8, 1, 64), LONG_PAGES, window=60, soft_cap=20.0),
        CHUNKS,
        2,
    ),
    "many_pieces": (kernel_case(Heads(8, 1, 64)), TREE, 8),
    "three_pieces_merged_at_once": (kernel_case(Heads(8, 1, 64)), TREE, 3),
    "capacity_far_above_live": (
        kernel_case(Heads(64, 2, 64)),
        {"nodes": 2, "reach": 2, "tokens": (200, 30)},
        8,
    ),
    "two_trees": (kernel_case(Heads(8, 1, 64)), TWO_TREES, 2),
    "wide_heads": (kernel_case(Heads(4, 1, 256), LONG_PAGES), CHUNKS, 2),
    "several_tiles_each": (kernel_case(Heads(32, 2, 64)), TREE, 3),
    "begins_with_an_empty_tile": (
        kernel_case(Heads(32, 2, 64)),
        {"nodes": 4, "reach": 4, "tokens": (70, 5, 9)},
        3,
    ),
    "no_live_query": (kernel_case(Heads(8, 1, 64)), {"nodes": 5, "queries": 0}, 2),
}


@pytest.fixture(autouse=True)
def _shim(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter_shim.install(monkeypatch)


Pools = tuple[jax.Array, jax.Array]


def interpret(case: Case, args: Inputs, pools: Pools, num_workers: int):
    """Return out and lse as numpy arrays; a race is an error."""
    logits = Logits(case.heads.head_dim**-0.5, case.window, case.soft_cap)
    with races_raise():
        results = tree_attention_mosaic(
            args.q,
            *pools,
            args.grouping,
            logits,
            config=TWO_STAGES,
            num_workers=num_workers,
            interpret=plgpu.InterpretGPUParams(detect_races=True),
        )
        return [np.array(x.astype(jnp.float32)) for x in results]


def expected_results(case: Case, args: Inputs):
    """Return out and lse of the oracle in float32."""
    exact = (x.astype(jnp.float32) for x in (args.q, *args.clean))
    results = attend(*exact, args.grouping, **case.options, implementation="reference")
    return jax.device_get(results)


@pytest.mark.parametrize(("case", "plan", "workers"), CASES.values(), ids=CASES)
def test_agrees_with_the_oracle_without_a_race(case: Case, plan: dict, workers: int):
    """Slots that nobody sees hold NaN and infinity, for the kernel."""
    args = inputs(case, grow(Plan(case.limits, **plan)), seed=1)
    out, lse = interpret(case, args, poisoned(case, args), workers)
    expected_out, expected_lse = expected_results(case, args)
    blind = np.isneginf(expected_lse)
    np.testing.assert_array_equal(np.isneginf(lse), blind)
    np.testing.assert_array_equal(out[blind], 0.0)
    size = np.linalg.norm(expected_out)
    assert np.linalg.norm(out - expected_out) <= ERROR * size
    np.testing.assert_allclose(lse[~blind], expected_lse[~blind], atol=LSE_ERROR)


@pytest.mark.parametrize("name", ["many_pieces", "window_and_soft_cap"])
def test_unseen_slots_and_other_queries_change_no_bit(name: str):
    """One query is not finite; its head ends as NaN, and nothing else changes."""
    case, plan, workers = CASES[name]
    args = inputs(case, grow(Plan(case.limits, **plan)), seed=1)
    expected = interpret(case, args, args.clean, workers)
    spoilt = dataclasses.replace(args, q=args.q.at[0, 0].set(jnp.nan))
    actual = interpret(case, spoilt, poisoned(case, args), workers)
    for result, was in zip(actual, expected, strict=True):
        assert np.isnan(result[0, 0]).all() and np.isfinite(was[0, 0]).all()
        was[0, 0] = np.nan
        np.testing.assert_array_equal(result, was)


def pass_over(ring: Ring, slot) -> None:
    """Wait for the copies and free the stage at once."""
    plgpu.barrier_wait(ring.full.at[slot])
    plgpu.barrier_arrive(ring.free.at[slot])


def nothing(ring: Ring, slot) -> None:
    del ring, slot


FAULTS = {
    "read_before_it_is_full": {"wait_full": nothing, "release": pass_over},
    "freed_before_it_is_read": {"wait_full": pass_over, "release": nothing},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_race_detector_sees_a_fault(monkeypatch: pytest.MonkeyPatch, fault: dict):
    case, plan, _ = CASES["two_trees"]
    args = inputs(case, grow(Plan(case.limits, **plan)), seed=1)
    for method, replacement in fault.items():
        monkeypatch.setattr(Ring, method, replacement)
    with pytest.raises(RuntimeError, match=RACE):
        interpret(case, args, args.clean, num_workers=1)
