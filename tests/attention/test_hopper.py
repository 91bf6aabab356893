"""The Pallas kernels on a GPU, over the cases of the op's own suite and larger ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention.api import tree_attention
from deft_jax.attention.device import num_multiprocessors
from deft_jax.attention.hopper import attend as attend_prepared
from deft_jax.attention.hopper import make_spec
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.spec import Logits
from deft_jax.pallas_kernels.grouped_partial_attention import work
from tests.support.attention_checks import Case, attend, check, inputs
from tests.support.forest_plans import Limits, Plan
from tests.support.forests import grow
from tests.support.shapes import HEADS, Heads

pytestmark = pytest.mark.gpu

LLAMA = HEADS["llama3_8b"]
SHORT_PAGES = Limits(nodes=40, pages=96, page_size=16, rows=48)
PAGES = Limits(nodes=24, pages=48, page_size=64, rows=80)
LONG_PAGES = Limits(nodes=12, pages=24, page_size=128, rows=40)
WIDE = Limits(nodes=1100, pages=1300, page_size=16, rows=1024)
PREFILL = Limits(nodes=6, pages=24, page_size=64, rows=512)
ERROR = 5e-3


def kernel_case(heads, limits=PAGES, dtype="bfloat16", **options) -> Case:
    return Case(heads, limits, dtype=dtype, **options)


CASES = {name: kernel_case(heads) for name, heads in HEADS.items()} | {
    f"group_{group}": kernel_case(Heads(2 * group, 2, 64), SHORT_PAGES)
    for group in (1, 2, 5, 6, 7, 12, 33, 64)
}
CASES |= {
    "more_heads_than_rows": kernel_case(Heads(71, 1, 64)),
    "float16": kernel_case(LLAMA, dtype="float16"),
    "float16_80": kernel_case(HEADS["phi2"], SHORT_PAGES, dtype="float16"),
    "long_pages": kernel_case(LLAMA, LONG_PAGES),
    "short_pages": kernel_case(LLAMA, SHORT_PAGES),
    "window": kernel_case(LLAMA, window=70),
    "window_1": kernel_case(HEADS["smollm2_135m"], SHORT_PAGES, window=1),
    "soft_cap": kernel_case(LLAMA, soft_cap=20.0),
    "window_and_soft_cap": kernel_case(
        HEADS["gemma_2b"], LONG_PAGES, window=200, soft_cap=30.0
    ),
    "scale": kernel_case(LLAMA, SHORT_PAGES, scale=0.02),
    "wide": kernel_case(LLAMA, WIDE),
    "wide_ungrouped": kernel_case(Heads(8, 8, 128), WIDE, window=500),
    "prefill": kernel_case(LLAMA, PREFILL),
}

PLANS = {
    "decode": {"nodes": 24, "reach": 4, "tokens": (1, 40, 200)},
    "forest": {"nodes": 20, "roots": 0.4, "reach": 8, "tokens": (5, 90), "holes": 0.3},
    "drafts": {
        **{"nodes": 22, "reach": 6, "tokens": (1, 1, 30), "drafts": 0.8},
        **{"inner": True, "pruned": 0.02},
    },
    "chunks": {"nodes": 6, "roots": 0.3, "reach": 3, "tokens": (150, 7), "queries": 99},
}


def plan_of(case: Case, name: str, seed: int) -> Plan:
    """Return a plan whose nodes fit; wide cases get as many as there is room for."""
    options = dict(PLANS[name])
    room = case.limits.nodes
    wide = room > 1000
    options["nodes"] = room - 10 if wide else min(options["nodes"], room)
    if wide:
        options["reach"] = room
    return Plan(case.limits, seed=seed, **options)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_oracle(case: Case):
    for seed, name in enumerate(PLANS):
        plan = plan_of(case, name, seed)
        poison_free_memory()
        check(case, plan, "mosaic_gpu")
        assert norm_error(case, plan) < ERROR


def poison_free_memory() -> None:
    """Leaves NaN in the memory that outputs will be made in."""
    jax.block_until_ready(jnp.full((64 << 20,), jnp.nan, jnp.float32))


def norm_error(case: Case, plan: Plan) -> float:
    """Relative error of the whole output by norm."""
    args = inputs(case, grow(plan), plan.seed)
    expected, _ = attend(
        args.q.astype(jnp.float32),
        *(x.astype(jnp.float32) for x in args.clean),
        args.grouping,
        **case.options,
        implementation="reference",
    )
    actual, _ = attend(
        args.q,
        *args.poisoned,
        args.grouping,
        **case.options,
        implementation="mosaic_gpu",
    )
    difference = np.linalg.norm(np.asarray(actual, np.float32) - np.asarray(expected))
    return float(difference / np.linalg.norm(np.asarray(expected)))


def test_fifty_runs_are_bit_identical():
    case = CASES["wide"]
    args = inputs(case, grow(plan_of(case, "decode", 0)), 0)
    runs = {
        np.asarray(part).tobytes()
        for _ in range(50)
        for part in attend(
            args.q, *args.clean, args.grouping, implementation="mosaic_gpu"
        )
    }
    assert len(runs) == 2


def test_layers_share_a_schedule_and_its_flags():
    """The kernels must lower every flag: the next layer waits for the same ones."""
    case = CASES["group_64"]
    args = inputs(case, grow(plan_of(case, "decode", 0)), 0)
    logits = Logits(case.heads.head_dim**-0.5, None, None)
    spec = make_spec(args.q, args.clean[0], logits, num_workers=num_multiprocessors())
    prepared = jax.jit(lambda grouping: prepare(grouping, spec))(args.grouping)
    schedule = prepared[-1]
    merges = schedule.worker[:, work.Share._fields.index("merges")]
    assert spec.fused and (merges > 0).any()
    layer = jax.jit(lambda q: attend_prepared(spec, q, *args.clean, prepared))
    for factor in (1, 2, 3):
        q = args.q * jnp.bfloat16(factor)
        out, _ = layer(q)
        expected, _ = attend(q, *args.clean, args.grouping, implementation="mosaic_gpu")
        np.testing.assert_array_equal(
            np.asarray(out, np.float32), np.asarray(expected, np.float32)
        )
        assert not schedule.flags.any()


def test_no_live_query_gives_zeros():
    case = CASES["llama3_8b"]
    args = inputs(case, grow(Plan(case.limits, nodes=9, reach=9, queries=0)), seed=0)
    out, lse = attend(
        args.q, *args.poisoned, args.grouping, implementation="mosaic_gpu"
    )
    np.testing.assert_array_equal(np.asarray(out, np.float32), 0.0)
    np.testing.assert_array_equal(lse, -np.inf)


def test_it_is_the_default_here():
    case = CASES["llama3_8b"]
    args = inputs(case, grow(plan_of(case, "decode", 0)), 0)
    picked, named = (
        attend(args.q, *args.clean, args.grouping, implementation=name)
        for name in (None, "mosaic_gpu")
    )
    np.testing.assert_array_equal(
        np.asarray(picked[0], np.float32), np.asarray(named[0], np.float32)
    )


def test_it_runs_in_a_loop_with_donated_pages():
    case = CASES["short_pages"]
    args = inputs(case, grow(plan_of(case, "forest", 0)), 0)

    def step(_, carry):
        q, k, v = carry
        out, _ = tree_attention(q, k, v, args.grouping, implementation="mosaic_gpu")
        return out, k.at[0].add(0), v

    def run(q, k, v):
        return jax.lax.fori_loop(0, 3, step, (q, k, v))

    expected = args.q
    for _ in range(3):
        expected, _ = attend(
            expected, *args.clean, args.grouping, implementation="mosaic_gpu"
        )
    pages = jax.tree.map(jnp.copy, args.clean)
    looped, *_ = jax.jit(run, donate_argnums=(1, 2))(args.q, *pages)
    np.testing.assert_array_equal(
        np.asarray(looped, np.float32), np.asarray(expected, np.float32)
    )


def test_chunks_of_heads_equal_separate_calls():
    case = CASES["more_heads_than_rows"]
    args = inputs(case, grow(plan_of(case, "decode", 1)), 1)
    whole, _ = attend(args.q, *args.clean, args.grouping, implementation="mosaic_gpu")
    narrow = dataclasses.replace(args, q=args.q[:, :1])
    alone, _ = attend(narrow.q, *args.clean, args.grouping, implementation="mosaic_gpu")
    np.testing.assert_allclose(
        np.asarray(whole[:, :1], np.float32), np.asarray(alone, np.float32), atol=0.02
    )
