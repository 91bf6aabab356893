"""The attention benchmark from end to end on the CPU, but for the kernels' times."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import group
from deft_jax.bench.attention import (
    measure as attention,
)
from deft_jax.bench.attention import (
    programs as attention_programs,
)
from deft_jax.bench.attention.cases import Case
from deft_jax.bench.attention.measure import Options, print_table, run
from deft_jax.bench.attention.programs import oracle, random_data
from deft_jax.bench.gpu.ceilings import Ceilings
from deft_jax.bench.trees.level_tree import level_tree
from tests.support.bench.steady_timer import REPEATS, steady_timer

CEILINGS = Ceilings(3000.0, "sum", 600.0, {"4MiB": 7.0})
SMALL = Case("small", (1, 2, 5), (9, 20, 3), num_q_heads=4, num_kv_heads=2, head_dim=16)
CASES = [
    dataclasses.replace(SMALL, name="peer", peer="other", peer_cold_us=42.0),
    dataclasses.replace(SMALL, name="wrong", num_q_heads=3),
    dataclasses.replace(
        SMALL, name="drafts", nodes=(1, 7), tokens_per_node=(30, 1), drafts=True
    ),
]
REPORT = {"device", "jax", "date", "read_gbs", "matrix_tflops", "cold_read_us", "cases"}
ROW = {
    *("name", "nodes", "tokens_per_node", "num_q_heads", "num_kv_heads", "head_dim"),
    *("leaves", "kv_bytes", "partial_bytes", "kernel_cold_us", "kernel_warm_us"),
    *("kernels", "grouping_us", "call_us", "rel_err", "roofline_us", "peer_cold_us"),
    "speedup",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("bench") / "report.json"
    options = Options("xla", page_size=8, repeats=REPEATS, loop=True)
    timer = steady_timer(("copy", 1e-3), ("attend", 9e-3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BATCH", 2)
        patch.setattr(attention_programs, "LOOP_CALLS", 2)
        made = run(CASES, options, timer, CEILINGS, out)
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps(made))
    return written


def test_the_report_has_every_field(report: dict):
    assert report.keys() >= REPORT
    assert [row["name"] for row in report["cases"]] == ["peer", "wrong", "drafts"]
    for row in (report["cases"][0], report["cases"][2]):
        assert row.keys() >= ROW
        assert row["kernel_cold_us"] == row["kernel_warm_us"] == 10.0
        assert row["kernels"] == {"copy": 1.0, "attend": 9.0}
        assert row["call_us"] > 0
        assert 1e-4 < row["rel_err"] < 1e-2


def test_speedups_are_over_the_peers(report: dict):
    peer, _, drafts = report["cases"]
    assert peer["speedup"] == 3.0
    assert drafts["speedup"] is None


def test_a_case_that_fails_does_not_end_the_run(report: dict):
    assert report["cases"][1]["error"].startswith("ValueError: q must have the pages'")


def test_the_table_ends_with_the_mean(report: dict, capsys: pytest.CaptureFixture):
    print_table(report["cases"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "geometric mean of 1 speedups: 3.000"
    assert len(lines) == 6 and "ValueError" in lines[3]


def test_only_known_cases_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        attention.main(["--out", str(tmp_path / "x.json"), "--cases", "99"])
    assert "numbers below 47" in capsys.readouterr().err


@pytest.mark.parametrize("leaves", [5, 70])
def test_the_oracle_in_parts_is_the_oracle(leaves: int):
    case = dataclasses.replace(SMALL, nodes=(1, 2, leaves))
    tree, slots = level_tree(case.nodes, case.tokens_per_node, 8)

    @jax.jit
    def both(tree, slots, key):
        grouping = group(tree, slots)
        q, k, v = (x.astype(jnp.float32) for x in random_data(key, case, tree))
        whole, _ = tree_attention(q, k, v, grouping, implementation="reference")
        return oracle(q, k, v, grouping), whole

    parts, whole = both(tree, slots, jax.random.key(1))
    np.testing.assert_allclose(parts, whole, atol=1e-5)
