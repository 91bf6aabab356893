"""A run with a profiler that is made up, and compiled steps that are shared."""

import pytest

from deft_jax.bench.decode.bench_engine import IdsOnly
from deft_jax.bench.decode.decode_run import PARTS, make_engine, run
from deft_jax.bench.decode.setting import Programs, Setting
from deft_jax.bench.decode.step_ceilings import Rates
from deft_jax.bench.methods.duplicated import DuplicatedMethod
from deft_jax.bench.trees.workload import (
    few_shot_workloads,
    reasoning_workloads,
    speculative_workloads,
)
from deft_jax.engine import runner
from tests.support.tiny_model import tiny_model

KERNELS = [("mosaic_gpu_kernel", 2.0), ("nvjet", 5.0), ("DeviceRadixSort", 0.5)]


def record(call):
    """Make up a step's kernels, the same for every step."""
    return KERNELS * int(call()[0])


def setting(**options) -> Setting:
    rates = Rates(read_gbs=10.0, matrix_tflops=0.1)
    return Setting(tiny_model(), IdsOnly(), rates, page_size=8, **options)


@pytest.fixture(scope="module")
def shared() -> Programs:
    return Programs()


def test_parts_are_means_over_the_profiled_steps(shared):
    # Bursts of 1, 1, 16, 1, 16, .. steps up to the 71st, which ends the request; the
    # second, fourth, .. are profiled.
    steps = 5
    [workload] = few_shot_workloads([9], [2], 70)
    with_record = setting(record=record, programs=shared)
    row = run(workload, "deft_flatten", with_record, profile=True)
    assert "error" not in row
    assert row["profiled_steps"] == steps
    times = dict(KERNELS)
    assert row["kernels"] == pytest.approx(times, abs=1e-5)
    assert row["kernel_ms"] == pytest.approx(sum(times.values()), abs=1e-4)
    expected = dict.fromkeys(PARTS, 0.0) | {
        "attention_ms": times["mosaic_gpu_kernel"],
        "model_ms": times["nvjet"],
        "grouping_ms": times["DeviceRadixSort"],
    }
    assert {name: row[name] for name in PARTS} == pytest.approx(expected, abs=1e-5)
    assert row["library_kernels"] == ["nvjet"]


def test_a_tree_of_one_step_is_profiled_where_it_ends(shared):
    [workload] = few_shot_workloads([9], [2], 1)
    row = run(workload, "deft_flatten", setting(record=record), profile=True)
    assert row["profiled_steps"] == 1


def test_there_are_no_parts_without_a_profile(shared):
    [workload] = few_shot_workloads([9], [2], 70)
    silent = setting(record=record, programs=shared)
    row = run(workload, "deft_flatten", silent, profile=False)
    assert row["kernel_ms"] is None and row["attention_ms"] is None
    assert row["step_ms"] > 0


def test_nothing_is_profiled_while_the_clock_runs(shared):
    def fail(call):
        raise NotImplementedError("no profiler")

    [workload] = few_shot_workloads([9], [2], 70)
    one = setting(record=fail, programs=shared)
    assert run(workload, "deft_flatten", one, profile=True)["error"] == "no profiler"
    assert "error" not in run(workload, "deft_flatten", one, profile=False)


def test_trees_of_a_capacity_share_their_programs(monkeypatch):
    lowered = []

    class Watched:
        def __init__(self, jitted):
            self.jitted = jitted

        def lower(self, *args, **options):
            lowered.append(options["method"])
            return self.jitted.lower(*args, **options)

    monkeypatch.setattr(runner, "run_prefill", Watched(runner.run_prefill))
    watched = Watched(runner.decode_program())
    monkeypatch.setattr(runner, "decode_program", lambda: watched)
    workloads = reasoning_workloads(["docmerge"], [4, 5], shorten=200)
    one = setting()
    for workload in workloads:
        assert "error" not in run(workload, "deft_flatten", one, profile=False)
    assert len(lowered) == 2, "prefill and decoding"


def test_programs_of_another_capacity_are_dropped():
    programs, made = Programs(), []

    def get(capacity, key):
        return programs.get(capacity, key, lambda: made.append(key) or key)

    assert [get(1, "a"), get(1, "b"), get(1, "a")] == ["a", "b", "a"]
    assert made == ["a", "b"]
    get(2, "a")
    get(1, "b")
    assert made == ["a", "b", "a", "b"]


def test_drafts_are_refused_by_a_method_that_cannot_take_them():
    [workload] = speculative_workloads([32], ["real"], 1024)
    row = run(workload, "flash_decoding", setting(), profile=False)
    assert "not drafts" in row["error"]


def test_an_engine_knows_the_longest_path_of_all_peers():
    workloads = reasoning_workloads(["docmerge"], [4, 5], shorten=200)
    longest = max(w.template.prompt_tokens + w.template.steps for w in workloads)
    for workload in workloads:
        method = make_engine(workload, "flash_decoding", setting()).method
        assert isinstance(method, DuplicatedMethod)
        assert method.path_tokens == longest
