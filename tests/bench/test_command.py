"""`deft-jax bench` from end to end, with a tiny model."""

import json
from html.parser import HTMLParser
from pathlib import Path

import jax
import pytest

from deft_jax.bench import command
from deft_jax.bench.decode import decode_run
from deft_jax.bench.decode.bench_engine import BenchRunner
from deft_jax.cli.main import main

QUICK = ("few-shot", "--shape", "tiny", "--quick", "--page-size", "16")
METHODS = ("--methods", "radix,deft_flatten")
TIMES = {
    *("step_ms", "ttft_ms", "prefill_ms", "decode_s", "end_to_end_s"),
    *("time_per_output_token_ms", "tokens_per_s"),
}
PROFILED = {
    *("model_ms", "attention_ms", "grouping_ms", "tree_ops_ms", "sampling_ms"),
    *("other_ms", "kernel_ms", "profiled_steps", "kernels", "library_kernels"),
}
KNOWN = {
    *("steps", "weight_bytes", "kv_bytes", "partial_bytes", "io", "flops"),
    *("roofline_ms", "roofline_fraction", "peak_bytes"),
}
ROW = {"workload", "parameters", "method", "implementation"}
REPORT = {
    "device",
    "jax",
    "date",
    "read_gbs",
    "matrix_tflops",
    "card",
    "runs",
    "cpu",
    "cores",
    "python",
    "deft_jax",
}


class References(HTMLParser):
    """What a page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.found += [v or "" for name, v in attrs if name in ("src", "href")]


def bench(folder: Path, capsys, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and the lines of standard output."""
    code = main(["bench", *arguments, "--output", str(folder)])
    return code, capsys.readouterr().out.splitlines()


def test_a_report_from_end_to_end(tmp_path: Path, capsys):
    # Two prompts that take as many pages, so that each step is compiled once.
    sweep = (*QUICK, *METHODS, "--prompt-tokens", "60,64", "--steps", "6")
    code, lines = bench(tmp_path, capsys, *sweep)
    assert code == 0
    report = json.loads(lines[-1])
    assert report == json.loads((tmp_path / "report.json").read_text())
    check_report(report)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *(
            "report.json",
            "report.html",
            "step_latency_prompt_tokens.png",
            "roofline.png",
        ),
        *("breakdown_few_shot.png", "io_few_shot.png"),
    }
    assert lines[0].startswith(
        "few-shot: 60 prompt tokens, width 4, 6 steps, radix: step "
    )
    assert {str(tmp_path / name) for name in names} <= set(lines)
    references = References((tmp_path / "report.html").read_text()).found
    assert len(references) == 4
    assert all(text.startswith("data:image/png;base64,") for text in references)


def check_report(report: dict) -> None:
    assert report.keys() == REPORT
    assert report["card"]["shape"] == "tiny"
    assert report["card"]["weights"] == "random"
    runs = report["runs"]
    order = [(run["parameters"]["prompt_tokens"], run["method"]) for run in runs]
    assert order == [(p, m) for p in (60, 64) for m in ("radix", "deft_flatten")]
    for run in runs:
        assert run.keys() == ROW | TIMES | PROFILED | KNOWN
        assert run["implementation"] == "xla"
        assert run["steps"] == 6
        assert all(run[name] > 0 for name in TIMES)
        assert all(run[name] is None for name in PROFILED), "the CPU has no profiler"
        check_times(run, tokens=6 * 4)
    # 2 layers, K and V, 2 heads of 64 float32 each; the mean of 1 to 6 is 3.5.
    paths, once = (run["io"]["kv_bytes"] / 2048 for run in runs[2:])
    assert (paths, once) == (4 * (64 + 3.5), 64 + 4 * 3.5)


def check_times(run: dict, tokens: int) -> None:
    decode_s = pytest.approx(run["decode_s"], rel=0.05, abs=1e-4)
    assert run["step_ms"] * 6 / 1e3 == decode_s
    assert run["time_per_output_token_ms"] * tokens / 1e3 == decode_s
    assert tokens / run["tokens_per_s"] == decode_s
    assert run["prefill_ms"] < run["ttft_ms"] < 1e3 * run["end_to_end_s"]
    assert run["decode_s"] < run["end_to_end_s"]
    fraction = run["roofline_ms"] / run["step_ms"]
    assert run["roofline_fraction"] == pytest.approx(fraction, abs=1e-4)


def test_a_run_that_does_not_fit_is_a_row_and_the_others_go_on(tmp_path, capsys):
    # The tiny model's context is 1024 tokens.
    sweep = (*QUICK, "--methods", "deft_flatten", "--prompt-tokens", "2000,64")
    code, lines = bench(tmp_path, capsys, *sweep)
    assert code == 1
    failed, run = json.loads(lines[-1])["runs"]
    assert failed.keys() == ROW | {"error"}
    assert "2000 tokens; the model's context of 1024" in failed["error"]
    assert "failed: prompt 0 has 2000 tokens" in lines[0]
    assert run["step_ms"] > 0
    assert (tmp_path / "report.html").exists()


def test_a_device_without_the_memory_is_a_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decode_run, "device_bytes", lambda: 1000)
    code, lines = bench(tmp_path, capsys, *QUICK, *METHODS)
    assert code == 1
    for run in json.loads(lines[-1])["runs"]:
        assert run["error"].startswith("out of memory: weights and KV need")


def test_what_the_device_says_is_one_short_line(tmp_path, capsys, monkeypatch):
    def decode(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\n" + "no room\n" * 99)

    monkeypatch.setattr(BenchRunner, "decode", decode)
    code, lines = bench(tmp_path, capsys, *QUICK, "--methods", "deft_flatten")
    assert code == 1
    [run] = json.loads(lines[-1])["runs"]
    assert run["error"].startswith("the device ran out of memory; lower n")
    assert "RESOURCE_EXHAUSTED: no room no room" in run["error"]
    assert len(run["error"]) <= 300


def test_bugs_are_not_rows(tmp_path, monkeypatch):
    def account(*args):
        raise ValueError("bug")

    monkeypatch.setattr(decode_run, "account", account)
    methods = ("--methods", "deft_flatten")
    with pytest.raises(ValueError, match="bug"):
        main(["bench", *QUICK, *methods, "--output", str(tmp_path)])


def test_an_interrupt_leaves_what_was_done(tmp_path, capsys, monkeypatch):
    done = []

    def run(workload, method, setting, *, profile):
        if done:
            raise KeyboardInterrupt
        done.append(method)
        return {"workload": "w", "parameters": {}, "method": method, "error": "none"}

    monkeypatch.setattr(command, "run", run)
    code, _ = bench(tmp_path, capsys, *QUICK, *METHODS)
    assert code == 130
    [row] = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert row["method"] == "radix"


def test_a_folder_that_cannot_be_made_is_said_before_anything_runs(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "make_setting", lambda options: pytest.fail("ran"))
    code = main(["bench", *QUICK, "--output", str(tmp_path / "file" / "folder")])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_kernels_of_a_gpu_need_one(tmp_path, capsys):
    code, lines = bench(
        tmp_path, capsys, *QUICK, *METHODS, "--implementation", "mosaic_gpu"
    )
    assert code == 1
    for run in json.loads(lines[-1])["runs"]:
        assert "needs an NVIDIA GPU" in run["error"]
        assert run["implementation"] == "mosaic_gpu"


def test_of_a_tasks_trees_one_is_profiled():
    searches = command.reasoning_workloads(["sorting", "docmerge"], [3, 4], 60)
    assert command.choose_profiled(searches) == [True, False, True, False]
    few_shot = command.few_shot_workloads([5], [2, 3], 4)
    assert command.choose_profiled(few_shot) == [True, True]
