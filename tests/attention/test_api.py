"""The op against its oracle, and the oracle against every query's path in float64."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.attention.api import tree_attention
from deft_jax.attention.backend import device_backend
from tests.support import float64_attention
from tests.support.attention_checks import Case, attend, check, inputs
from tests.support.forest_plans import Limits, Plan, plans
from tests.support.forests import grow
from tests.support.shapes import HEADS
from tests.support.tolerances import assert_attention_close

IMPLEMENTATIONS = ["xla", pytest.param("xla", marks=pytest.mark.gpu, id="xla_on_gpu")]

LARGE = Limits(nodes=200, pages=224, page_size=8, rows=144)
LONG_PAGES = Limits(nodes=12, pages=16, page_size=64, rows=40)

SMOL = HEADS["smollm2_135m"]
CASES = {name: Case(heads) for name, heads in HEADS.items()} | {
    "window_1": Case(SMOL, window=1),
    "soft_cap": Case(SMOL, soft_cap=3.0),
    "scale": Case(SMOL, scale=0.05),
    "tiles_of_4": Case(SMOL, tile_queries=4, window=9),
    "long_pages": Case(SMOL, LONG_PAGES, window=100),
    "large": Case(SMOL, LARGE),
    "large_tiles_of_16": Case(SMOL, LARGE, tile_queries=16, window=20, soft_cap=20.0),
    "bfloat16": Case(HEADS["llama3_8b"], dtype="bfloat16"),
    "bfloat16_wide_heads": Case(HEADS["gemma_2b"], dtype="bfloat16", soft_cap=30.0),
    "bfloat16_large": Case(SMOL, LARGE, dtype="bfloat16", window=50),
    "float16": Case(SMOL, dtype="float16", window=5),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(data=st.data())
def test_agrees_with_the_oracle(case: Case, implementation: str, data: st.DataObject):
    check(case, data.draw(plans(case.limits)), implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["smollm2_135m", "tiles_of_4", "bfloat16"])
def test_rows_that_see_nothing_are_zeros(name: str, implementation: str):
    case = CASES[name]
    args = inputs(case, grow(Plan(case.limits, nodes=9, reach=9, queries=0)), seed=0)
    out, lse = attend(
        args.q,
        *args.poisoned,
        args.grouping,
        **case.options,
        implementation=implementation,
    )
    np.testing.assert_array_equal(np.asarray(out, np.float32), 0.0)
    np.testing.assert_array_equal(lse, -np.inf)


@pytest.mark.parametrize("name", ["smollm2_135m", "tiles_of_4", "soft_cap", "scale"])
@given(data=st.data())
def test_the_oracle_is_a_softmax_along_each_path(name: str, data: st.DataObject):
    case = CASES[name]
    plan = data.draw(plans(case.limits))
    forest = grow(plan)
    args = inputs(case, forest, plan.seed)
    out, lse = attend(
        args.q, *args.clean, args.grouping, **case.options, implementation="reference"
    )
    rank = np.asarray(args.grouping.rank)
    q, k, v = (np.asarray(x) for x in (args.q, *args.clean))
    expected = [
        attend_path(case, q[rank[row]], k, v, path)
        for row, path in enumerate(forest.paths)
    ]
    expected_out, expected_lse = (np.stack(x) for x in zip(*expected, strict=True))
    assert_attention_close((out[rank], lse[rank]), (expected_out, expected_lse))


def attend_path(case: Case, q, k, v, path) -> tuple[np.ndarray, np.ndarray]:
    """One query over its path, of which a window leaves the last tokens."""
    path = path if case.window is None else path[-case.window :]
    page, slot = np.array(path, int).reshape(-1, 2).T
    return float64_attention.attend(
        q,
        k[page, :, slot],
        v[page, :, slot],
        scale=case.scale or 1 / math.sqrt(case.heads.head_dim),
        soft_cap=case.soft_cap,
    )


def test_one_trace_serves_every_forest_within_the_capacity():
    case, traces = CASES["smollm2_135m"], []

    @jax.jit
    def counted(q, k, v, grouping):
        traces.append(None)
        return tree_attention(q, k, v, grouping)

    for nodes, queries in [(1, 0), (1, 1), (16, 1), (5, 24)]:
        plan = Plan(case.limits, nodes, reach=4, tokens=(9,), queries=queries)
        args = inputs(case, grow(plan), seed=0)
        counted(args.q, *args.clean, args.grouping)
    assert len(traces) == 1


def test_no_implementation_named_picks_the_default():
    case = CASES["smollm2_135m"]
    args = inputs(case, grow(Plan(case.limits, nodes=9, reach=9)), seed=0)
    picked, named = (
        attend(args.q, *args.clean, args.grouping, implementation=name)
        for name in (None, device_backend(None).implementation)
    )
    np.testing.assert_array_equal(picked[0], named[0])
    np.testing.assert_array_equal(picked[1], named[1])
