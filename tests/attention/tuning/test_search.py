"""The search for tuned sizes, with stand-ins for the GPU's clock."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention.hopper import make_spec
from deft_jax.attention.spec import HEADS, Heads, Logits
from deft_jax.attention.tuning.problem import level_arrays, make_problem, tree_levels
from deft_jax.attention.tuning.search import (
    Measurement,
    best,
    candidates,
    problem_spec,
    search,
    wall_seconds,
)
from deft_jax.pallas_kernels.kernel_spec import SHARED_BYTES, KernelConfig, KernelSpec

TINY = {"a": [(1, 40), (3, 20)], "b": [(1, 10), (2, 17), (3, 1)]}


def spec(heads: Heads, page_size: int) -> KernelSpec:
    q = jnp.zeros((64, heads.num_q, heads.head_dim), jnp.bfloat16)
    k = jnp.zeros((1, heads.num_kv, page_size, heads.head_dim), q.dtype)
    return make_spec(q, k, Logits(1.0, None, None), config=KernelConfig())


def test_a_tree_as_plain_arrays():
    """Page order is random, so that rows are compared as a set."""
    (first, end, position), queries = level_arrays([(1, 3), (2, 5)], page_size=4)
    stacked = np.stack([first, end, position], axis=1).tolist()
    rows = {tuple(map(tuple, row)) for row in stacked}
    assert rows == {
        ((0, 0, 0, 0), (2, 2, 2, 0), (0, 1, 2, 0)),
        ((0, 0, 0, 0), (1, 1, 1, 1), (3, 4, 5, 6)),
        ((0, 0, 0, 0), (1, 0, 0, 0), (7, 0, 0, 0)),
        ((1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 5, 6)),
        ((1, 0, 0, 0), (2, 0, 0, 0), (7, 0, 0, 0)),
    }
    assert queries.tolist() == [7, 7]


@pytest.mark.parametrize("num_queries", [1, 7, 8, 100])
def test_every_query_sees_a_whole_path(num_queries: int):
    for levels in tree_levels(num_queries).values():
        (first, end, _), _ = level_arrays(levels, page_size=64)
        rank = np.arange(num_queries)[:, None, None]
        seen = ((first <= rank) & (rank < end)).sum((1, 2))
        assert set(seen) == {sum(tokens for _, tokens in levels)}


def test_the_trees_of_a_problem_share_a_pool():
    made = make_problem(Heads(4, 2, 64), TINY, page_size=16, dtype="bfloat16")
    assert problem_spec(made).num_queries == 3
    assert made.trees.keys() == made.expected.keys() == TINY.keys()
    assert made.k_pages.shape == (9, 2, 16, 64)
    for name, out in made.expected.items():
        assert made.error(name, out) == 0.0
        assert made.error(name, out * 1.5) == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_candidates_fit(heads: Heads):
    any_config = spec(heads, page_size=64)
    configs = candidates(any_config)
    assert len(set(configs)) == len(configs) >= 2
    for config in configs:
        made = dataclasses.replace(any_config, config=config)
        assert made.shared_bytes <= SHARED_BYTES
    assert set(candidates(any_config, quick=True)) <= set(configs)


def test_candidates_divide_the_page():
    units = {c.unit_tokens for c in candidates(spec(HEADS["llama3_8b"], page_size=48))}
    assert units == {16}


FAST, SLOW, WRONG, NAN, BROKEN = (KernelConfig(stages=n) for n in range(2, 7))


def fake(config: KernelConfig) -> Measurement:
    if config == BROKEN:
        raise RuntimeError("no\nregisters left")
    us = {FAST: 9.0, SLOW: 11.0, WRONG: 1.0, NAN: 1.0}[config]
    error = {WRONG: 0.02, NAN: math.nan}.get(config, 0.003)
    return Measurement(config, {"a": us, "b": us}, error)


def test_only_what_is_right_can_win():
    measured = list(search([BROKEN, NAN, WRONG, SLOW, FAST], fake))
    assert [m.failure for m in measured] == [
        "no registers left",
        "relative error nan",
        "relative error 2.0e-02",
        None,
        None,
    ]
    winner = best(measured)
    assert winner is not None and winner.config == FAST
    assert best(measured[:3]) is None


def test_each_tree_weighs_the_same():
    assert Measurement(FAST, {"a": 1.0, "b": 100.0}).mean_us == pytest.approx(10.0)


def test_wall_seconds_warms_up_once():
    calls = []
    assert wall_seconds(lambda: calls.append(None), repeats=3) < 1.0
    assert len(calls) == 4
