"""What is made of the profiler's output; the counting itself needs a GPU."""

import json
import subprocess
from pathlib import Path

import pytest

from deft_jax.bench.attention import dram_reads

OUTPUT = """\
==PROF== Connected to process 605 (/usr/bin/python3.12)
==PROF== Disconnected from process 605
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","605","mosaic_gpu_kernel","dram__bytes_read.sum","byte","155,524,096"
"0","605","mosaic_gpu_kernel","gpu__time_duration.sum","ns","59,000"
"1","605","mosaic_gpu_kernel","dram__bytes_read.sum","byte","1,024"
"""


def test_the_bytes_of_all_kernels_are_read():
    assert dram_reads.parse(OUTPUT) == {
        "0 mosaic_gpu_kernel": 155_524_096,
        "1 mosaic_gpu_kernel": 1024,
    }
    assert dram_reads.parse("==ERROR== nothing\n") == {}


def test_the_report_compares_them_with_the_tree(tmp_path: Path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, OUTPUT, "")

    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "reads.json"
    assert dram_reads.main(["--out", str(out), "--cases", "20,3"]) == 0
    assert [command[-1] for command in commands] == ["20", "3"]
    first, second = json.loads(out.read_text())["cases"]
    assert first["kv_bytes"] == 36864 * 8 * 128 * 2 * 2
    assert first["dram_read_bytes"] == 155_525_120
    assert first["ratio"] == pytest.approx(155_525_120 / first["kv_bytes"], abs=1e-4)
    assert second["nodes"] == [1, 256]


def test_a_profiler_that_counts_nothing_is_an_error(monkeypatch):
    silent = subprocess.CompletedProcess([], 1, "==ERROR== no permission", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: silent)
    with pytest.raises(RuntimeError, match="no permission"):
        dram_reads.counted("0")
