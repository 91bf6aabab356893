"""The kernels' masks: ranges of tokens that the window hides from every query."""

import jax
import numpy as np
import pytest

from deft_jax.attention.hopper import make_spec
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.spec import Logits
from tests.support.attention_checks import Case, inputs
from tests.support.forest_plans import Limits, Plan
from tests.support.forests import grow
from tests.support.kernels.poison import seen_slots
from tests.support.shapes import Heads

LIMITS = Limits(nodes=24, pages=32, page_size=16, rows=17)
PLANS = {
    "one_tree": {"nodes": 24, "reach": 6, "tokens": (30, 9)},
    "several_trees": {"nodes": 24, "roots": 0.3, "tokens": (5, 20), "holes": 0.3},
    "chunks": {"nodes": 4, "reach": 2, "tokens": (40,), "queries": 11},
}


@pytest.mark.parametrize("window", [1, 7, 40])
@pytest.mark.parametrize("plan", PLANS)
def test_they_are_empty_and_no_others(plan: str, window: int):
    case = Case(Heads(4, 2, 64), LIMITS, dtype="bfloat16", window=window)
    args = inputs(case, grow(Plan(LIMITS, seed=5, **PLANS[plan])), seed=1)
    spec = make_spec(args.q, args.clean[0], Logits(1.0, window, None))
    masks, *_ = jax.jit(lambda grouping: prepare(grouping, spec))(args.grouping)
    ranks = np.asarray(masks)[:-1, 0].reshape(LIMITS.pages, LIMITS.page_size)
    first, end = ranks & 0xFFFF, ranks >> 16
    seen = seen_slots(args.grouping, window)
    in_range = seen_slots(args.grouping, None)
    assert (in_range & ~seen).any()
    np.testing.assert_array_equal(first < end, seen)
    np.testing.assert_array_equal(
        first[seen], np.asarray(args.grouping.slot_first)[seen]
    )
    np.testing.assert_array_equal(end[seen], np.asarray(args.grouping.slot_end)[seen])
