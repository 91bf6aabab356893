"""On a GPU: no bit of a result depends on a slot that no query of the step sees.

pytest -m gpu tests/pallas_kernels/grouped_partial_attention/test_unseen_slots.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention.hopper import DTYPES, HEAD_DIMS, tree_attention_mosaic
from deft_jax.attention.portable import tree_attention_mma
from deft_jax.attention.spec import Logits
from deft_jax.pallas_kernels.kernel_spec import KernelConfig
from tests.support.attention_checks import Case, attend, inputs
from tests.support.forest_plans import Limits, Plan
from tests.support.forests import grow
from tests.support.kernels.poison import poisoned
from tests.support.shapes import Heads

pytestmark = pytest.mark.gpu

ERROR = 5e-3
LIMITS = Limits(nodes=64, pages=256, page_size=32, rows=64)
PLANS = {
    "leaves_with_partly_filled_pages": {"nodes": 60, "reach": 8, "tokens": (5, 40)},
    "few_long_nodes": {"nodes": 12, "reach": 2, "tokens": (300, 9)},
    "several_trees": {"nodes": 64, "roots": 0.2, "tokens": (5, 40), "holes": 0.3},
    "chunks": {"nodes": 6, "reach": 2, "tokens": (70,), "queries": 50},
}
KERNELS = {
    "hopper": tree_attention_mosaic,
    **{
        f"hopper_blocks_of_{size}": functools.partial(
            tree_attention_mosaic, config=KernelConfig(16, size, 2)
        )
        for size in (64, 128)
    },
    "mma": functools.partial(tree_attention_mma, bulk=True),
}


def results(kernel, case: Case, q, pools, grouping) -> list[np.ndarray]:
    """Return out and lse of a kernel in float32."""
    logits = Logits(case.heads.head_dim**-0.5, case.window, case.soft_cap)
    run = jax.jit(lambda *args: kernel(*args, logits))
    return [np.array(x, np.float32) for x in run(q, *pools, grouping)]


def check(kernel, case: Case, plan: str) -> None:
    """Compare a poisoned pool with a clean one, and that with the oracle."""
    args = inputs(case, grow(Plan(case.limits, seed=3, **PLANS[plan])), seed=1)
    expected = results(kernel, case, args.q, args.clean, args.grouping)
    exact = (x.astype(jnp.float32) for x in (args.q, *args.clean))
    oracle, _ = attend(
        *exact, args.grouping, **case.options, implementation="reference"
    )
    oracle = np.asarray(oracle)
    assert np.linalg.norm(expected[0] - oracle) <= ERROR * np.linalg.norm(oracle)
    pools = poisoned(case, args)
    for _ in range(2):
        actual = results(kernel, case, args.q, pools, args.grouping)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(x, y)
    # A query that is not finite ends as NaN and harms nobody.
    q = args.q.at[0, 0].set(jnp.nan)
    actual = results(kernel, case, q, pools, args.grouping)
    for x, y in zip(actual, expected, strict=True):
        assert np.isnan(x[0, 0]).all() and np.isfinite(y[0, 0]).all()
        y[0, 0] = np.nan
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_every_kernel_and_forest(kernel, plan: str):
    check(kernel, Case(Heads(16, 4, 128), LIMITS, dtype="bfloat16"), plan)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("name", ["hopper", "mma"])
def test_every_head_size(name: str, head_dim: int, dtype: str):
    case = Case(Heads(8, 2, head_dim), LIMITS, dtype=dtype)
    check(KERNELS[name], case, "leaves_with_partly_filled_pages")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["hopper", "mma"])
def test_tokens_that_only_the_window_hides(name: str, plan: str):
    case = Case(Heads(16, 4, 128), LIMITS, dtype="bfloat16", window=20)
    check(KERNELS[name], case, plan)


@pytest.mark.parametrize("heads", [Heads(64, 1, 128), Heads(4, 4, 64)])
@pytest.mark.parametrize("name", ["hopper", "mma"])
def test_large_groups_and_none(name: str, heads: Heads):
    case = Case(heads, LIMITS, dtype="bfloat16", soft_cap=20.0, window=10_000)
    check(KERNELS[name], case, "several_trees")
