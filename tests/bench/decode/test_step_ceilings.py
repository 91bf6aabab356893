"""The roofline of a step against numbers by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.bench.decode import step_ceilings
from deft_jax.bench.decode.step_ceilings import (
    Rates,
    StepWork,
    measure_rates,
    step_work,
)
from deft_jax.bench.trees.draft_templates import speculative
from deft_jax.bench.trees.workload import few_shot_workloads, speculative_workloads
from deft_jax.models.config.shapes import SHAPES

TINY = SHAPES["tiny"]
LAYER = 64 * 256 + 2 * 64 * 128 + 256 * 64 + 3 * 64 * 128 + 2 * 64
WEIGHTS = 2 * LAYER + 256 * 64 + 64
TOKEN_BYTES = 2 * 2 * 2 * 64 * 2
PAIR_FLOPS = 4 * 2 * 4 * 64
"""Of one query and one token: two products, 2 layers, 4 heads of 64."""

MANY = 1e9


def work() -> StepWork:
    """Of a prompt of 5 tokens with 2 branches in 3 steps, in 2-byte numbers."""
    return step_work(few_shot_workloads([5], [2], 3)[0], TINY, itemsize=2)


def test_work_of_a_tree():
    found = work()
    assert found.weight_bytes == 2 * WEIGHTS
    np.testing.assert_array_equal(found.kv_bytes, np.array([7, 9, 11]) * TOKEN_BYTES)
    seen = np.array([6, 7, 8]) * 2
    np.testing.assert_array_equal(found.flops, 4 * WEIGHTS + PAIR_FLOPS * seen)


def test_work_of_drafts():
    [workload] = speculative_workloads([32], ["real"], 1024)
    found = step_work(workload, TINY, itemsize=4)
    first = 1016 + 32
    assert found.kv_bytes[0] == first * 2 * TOKEN_BYTES
    seen = 32 * 1017 + sum(speculative(32).depths)
    assert found.flops[0] == 2 * 32 * WEIGHTS + PAIR_FLOPS * seen


def test_an_embedding_is_not_read_where_the_head_has_weights_of_its_own():
    untied = dataclasses.replace(TINY, tie_embeddings=False)
    [workload] = few_shot_workloads([5], [2], 3)
    assert step_work(workload, untied, 2).weight_bytes == 2 * WEIGHTS
    assert untied.num_parameters == WEIGHTS + 256 * 64


def test_roofline_of_reads():
    expected_ms = (2 * WEIGHTS + 9 * TOKEN_BYTES) / 3e9 * 1e3
    assert work().roofline_ms(Rates(3.0, MANY)) == pytest.approx(expected_ms)


def test_roofline_of_products():
    expected_ms = (4 * WEIGHTS + 14 * PAIR_FLOPS) / 2e9 * 1e3
    assert work().roofline_ms(Rates(MANY, 0.002)) == pytest.approx(expected_ms)


def test_each_step_has_a_roofline_of_its_own():
    # 200 and 400 bytes at a byte per ms; 1000 and 100 operations at one per ms.
    mixed = StepWork(100, np.array([100, 300]), np.array([1000, 100]))
    assert mixed.roofline_ms(Rates(1e-6, 1e-9)) == pytest.approx((1000 + 400) / 2)


def test_rates_of_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_ceilings, "CPU_READ_ROWS", 2**10)
    monkeypatch.setattr(step_ceilings, "CPU_MATRIX_SIZE", 500)
    seconds = iter([4e-3, 2e-3, 3e-3, 5e-3])
    monkeypatch.setattr(step_ceilings, "wall_seconds", lambda *args: next(seconds))
    rates = measure_rates(jnp.dtype(jnp.float32))
    assert rates.read_gbs == round(2**10 * 2**11 * 4 / 2e-3 / 1e9, 1)
    assert rates.matrix_tflops == round(2 * 500**3 / 5e-3 / 1e12, 4)


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_ceilings, "CPU_READ_ROWS", 2**12)
    monkeypatch.setattr(step_ceilings, "CPU_MATRIX_SIZE", 512)
    rates = measure_rates(jnp.dtype(jnp.float32))
    assert 0.1 < rates.read_gbs < 1e4
    assert 1e-4 < rates.matrix_tflops < 100
