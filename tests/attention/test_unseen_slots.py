"""What a slot holds that no query sees does not matter: not even NaN or infinity.

0 times NaN is NaN, so what is masked must be left out by selection.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.attention.grouping import group_arrays
from deft_jax.attention.hopper import make_spec
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.spec import Logits
from tests.support.attention_checks import Case, Inputs, attend, inputs
from tests.support.forest_plans import Limits, Plan, plans
from tests.support.forests import Forest, grow
from tests.support.shapes import HEADS, Heads

SMOL = HEADS["smollm2_135m"]
LARGE = Limits(nodes=200, pages=224, page_size=8, rows=144)
CASES = {
    "narrow_and_wide": Case(SMOL),
    "wide_alone": Case(SMOL, tile_queries=4),
    "large": Case(SMOL, LARGE),
    "window": Case(SMOL, window=3),
    "large_window": Case(SMOL, LARGE, tile_queries=16, window=9, soft_cap=20.0),
    "soft_cap": Case(SMOL, soft_cap=3.0),
    "bfloat16": Case(HEADS["llama3_8b"], dtype="bfloat16"),
}
POISON = (np.nan, np.inf, -np.inf)


def seen_slots(case: Case, forest: Forest) -> np.ndarray:
    """Return [M, P] bool, true where a query sees the token within the window."""
    seen = np.zeros(forest.seen.shape, bool)
    for path in forest.paths:
        for at in path[-(case.window or len(path)) :]:
            seen[at] = True
    return seen


def poisoned(case: Case, forest: Forest, args: Inputs, seed: int) -> list[jnp.ndarray]:
    """Return q, k and v with NaN and infinity wherever they must not matter."""
    rng = np.random.default_rng(seed)
    rank = np.asarray(args.grouping.rank)
    blind = np.zeros(len(rank), bool)
    blind[rank] = [not path for path in forest.paths]
    hidden = ~seen_slots(case, forest)[:, None, :, None]

    def poison(x, where):
        return jnp.where(where, rng.choice(POISON, x.shape).astype(x.dtype), x)

    q = poison(args.q, blind[:, None, None])
    return [q, *(poison(x, hidden) for x in args.clean)]


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(data=st.data())
def test_unseen_slots_and_idle_rows_never_matter(
    case: Case, implementation: str, data: st.DataObject
):
    plan = data.draw(plans(case.limits))
    forest = grow(plan)
    args = inputs(case, forest, plan.seed)
    options = {**case.options, "implementation": implementation}
    expected = attend(args.q, *args.clean, args.grouping, **options)
    actual = attend(*poisoned(case, forest, args, plan.seed), args.grouping, **options)
    for got, wanted in zip(actual, expected, strict=True):
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("name", ["narrow_and_wide", "wide_alone", "soft_cap"])
def test_a_query_that_is_not_finite_harms_no_other(name: str, implementation: str):
    """The engine marks a broken token by NaN in its queries: other rows go on."""
    case = CASES[name]
    forest = grow(Plan(case.limits, nodes=12, reach=9, tokens=(5, 30)))
    args = inputs(case, forest, seed=0)
    options = {**case.options, "implementation": implementation}
    expected = attend(args.q, *args.clean, args.grouping, **options)
    live = int(args.grouping.num_live)
    assert live > 4
    for broken in (0, live - 1):
        q = args.q.at[broken, 1].set(jnp.nan)
        actual = attend(q, *args.clean, args.grouping, **options)
        for got, wanted in zip(actual, expected, strict=True):
            got, wanted = np.array(got), np.array(wanted)
            assert np.isnan(got[broken, 1]).all()
            got[broken, 1] = wanted[broken, 1]
            np.testing.assert_array_equal(got, wanted)


def test_values_that_overflow_harm_no_other_query():
    """One query's values add up to infinity, which 0 times would make NaN elsewhere."""
    first = np.repeat(np.arange(16)[:, None], 16, axis=1)
    position = np.tile(np.arange(16), (16, 1))
    grouping = group_arrays(first, first + 1, position, np.full(16, 15), num_live=16)
    assert int(grouping.narrow.num_pairs) == 16
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(16, 2, 16)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 16, 1, 16, 16)), jnp.float32)
    expected, _ = attend(q, k, v, grouping, implementation="xla")
    out, _ = attend(q, k, v.at[3].set(3e38), grouping, implementation="xla")
    np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(expected, 3, 0))


def test_ranges_of_unseen_slots_may_hold_anything():
    """Kernels pack a range in two times 16 bits: a large first must not be an end."""
    live, pages, size = 3, 4, 16
    seen = np.arange(pages * size).reshape(pages, size) % 3 > 0
    seen[:2, 0] = False
    first, end = np.where(seen, 1, 2**30), np.where(seen, 9, 0)
    first[0, 0], end[0, 0] = 2**31 - 1, -(2**31)
    first[1, 0], end[1, 0] = 70_000, 5
    position, last = np.zeros((pages, size), np.int32), np.zeros(4, np.int32)
    grouping = group_arrays(first, end, position, last, num_live=live)
    q = jnp.zeros((4, 2, 64), jnp.bfloat16)
    k = jnp.zeros((pages, 1, size, 64), jnp.bfloat16)
    masks, *_ = prepare(grouping, make_spec(q, k, Logits.plain(64)))
    ranges = np.asarray(masks)[:-1, 0].reshape(pages, size)
    packed_first, packed_end = ranges & 0xFFFF, ranges >> 16
    rank = np.arange(4)[:, None, None]
    sees = (packed_first <= rank) & (rank < packed_end)
    np.testing.assert_array_equal(sees, seen & (rank >= 1) & (rank < live))


def test_the_oracle_reads_only_what_is_seen():
    """A window hides tokens from every query, whatever their ranges say."""
    case = dataclasses.replace(CASES["window"], heads=Heads(2, 1, 8))
    forest = grow(Plan(case.limits, nodes=1, tokens=(20,)))
    assert seen_slots(case, forest).sum() < forest.seen.sum()
