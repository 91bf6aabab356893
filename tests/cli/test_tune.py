"""`deft-jax tune` without a GPU: its refusals, and its bookkeeping with stand-ins."""

import json

import pytest

from deft_jax.attention.tuned_sizes import Entry, Key, Table, read_table, write_table
from deft_jax.attention.tuning.search import Measurement
from deft_jax.cli import tune
from deft_jax.cli.arguments import build_parser
from deft_jax.cli.main import main
from deft_jax.pallas_kernels.kernel_spec import KernelConfig

KIND = "Test GPU"
OTHER = Key(head_dim=256, dtype="float16", windowed=True, rows=128, page_size=16)


def measure(problem, config, *, timer):
    """Time grows with the block, and a call of `timer` is one tree."""
    if config.stages == 4:
        raise ValueError("does not fit")
    us = {name: timer(lambda: None) * config.block_tokens for name in problem.trees}
    return Measurement(config, us, error=1e-3)


def clock(call, *, repeats):
    return float(repeats)


@pytest.fixture
def gpu(monkeypatch):
    one = tune.tune_one
    monkeypatch.setattr(tune, "gpu_kind", lambda: KIND)
    monkeypatch.setattr(tune, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(tune, "tree_levels", lambda n: {"branches": [(1, 9), (n, 2)]})
    monkeypatch.setattr(
        tune,
        "tune_one",
        lambda problem, quick: one(problem, quick=quick, measure=measure, timer=clock),
    )


def run(path, *arguments):
    return main(
        ["tune", "--model-shape", "smollm2_135m", "--output", str(path), *arguments]
    )


def test_a_device_that_is_not_tuned_for_is_one_line(capsys, tmp_path):
    assert run(tmp_path / "table.json") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(
        "deft-jax: error: tune needs an NVIDIA GPU of compute capability 9.0, got cpu;"
    )
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_another_gpu_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "gpu_kind", lambda: "NVIDIA A100")
    monkeypatch.setattr(tune, "compute_capability", lambda: (8, 0))
    assert run(tmp_path / "table.json") == 2
    assert "got NVIDIA A100 of compute capability 8.0;" in capsys.readouterr().err


@pytest.mark.usefixtures("gpu")
def test_the_fastest_sizes_are_kept_beside_those_of_other_keys(capsys, tmp_path):
    path = tmp_path / "new" / "table.json"
    entry = Entry(KernelConfig(stages=2), us=1.0)
    write_table(path, Table(KIND, entries={OTHER: entry}))
    assert run(path, "--queries", "16,64", "--page-size", "32", "--window", "8") == 0
    table = read_table(path)
    assert table is not None and table.jax and table.date
    keys = [
        Key(head_dim=64, dtype="bfloat16", windowed=True, rows=rows, page_size=32)
        for rows in (64, 256)
    ]
    assert list(table.entries) == [OTHER, *keys]
    assert table.entries[OTHER] == entry
    for key in keys:
        assert table.entries[key] == Entry(KernelConfig(16, 64, 2), us=5 * 64.0)
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert (
        f"rows 256: unit_tokens 16, block_tokens 64, stages 2; kept in {path}" in shown
    )


@pytest.mark.usefixtures("gpu")
def test_what_was_found_before_ctrl_c_is_kept(tmp_path, monkeypatch):
    path, one, done = tmp_path / "table.json", tune.tune_one, []

    def interrupted(problem, quick):
        if done:
            raise KeyboardInterrupt
        done.append(None)
        return one(problem, quick=quick)

    monkeypatch.setattr(tune, "tune_one", interrupted)
    assert run(path, "--quick", "--queries", "4,40") == 130
    assert [entry["rows"] for entry in json.loads(path.read_text())["entries"]] == [64]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "16,20"], "--queries 16 and 20 share the table's entry of 64"),
        (["--page-size", "24"], "page size 24 is no multiple of 16"),
        (["--queries", "70000"], "70000 query tokens are more than 65535"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(capsys, tmp_path, arguments, message):
    assert run(tmp_path / "table.json", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("gpu")
def test_a_table_that_cannot_be_extended_is_named(capsys, tmp_path):
    path = tmp_path / "table.json"
    path.write_text("{")
    assert run(path) == 2
    assert f"{path}: not a table of tuned sizes" in capsys.readouterr().err
    write_table(path, Table("Another GPU"))
    assert run(path) == 2
    assert "the table is for Another GPU, got Test GPU" in capsys.readouterr().err


def test_queries_are_integers_with_commas(capsys):
    options = build_parser().parse_args(["tune", "--queries", "1,20"])
    assert options.queries == [1, 20]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["tune", "--queries", "1,,2"])
    assert "expected an integer of at least 1, got ''" in capsys.readouterr().err
