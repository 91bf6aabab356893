"""The script that checks a GPU, as far as it goes without one."""

import json
import sys
from pathlib import Path

import pytest

from scripts import check_gpu

TESTS = """
import pytest

@pytest.mark.parametrize("n", [1, 2, 3])
def test_number(n):
    assert n != 2

def test_slow():
    import time
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With tests of its own, where results are written."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_made_up.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_gpu, "RESULTS", tmp_path)
    plain = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    monkeypatch.setattr(check_gpu, "PYTEST", plain)
    monkeypatch.setattr(check_gpu, "card", lambda: {"device": "none"})
    return tmp_path


def test_failures_and_tests_that_were_cut_off_are_reported(folder: Path):
    assert not check_gpu.check_tests(jobs=2, seconds=15.0)
    report = json.loads((folder / "gpu_tests.json").read_text())
    name = "tests/test_made_up.py::test_number"
    assert {case["name"]: case["passed"] for case in report["cases"]} == {
        f"{name}[1]": True,
        f"{name}[2]": False,
        f"{name}[3]": True,
    }
    assert report["failures"] == 1
    assert report["not_run"] == ["tests/test_made_up.py::test_slow"]


def test_the_sanitizer_must_have_said_that_all_is_well(folder: Path, monkeypatch):
    said = iter(["x\n==== ERROR SUMMARY: 0 errors\n"] * 5 + ["Segmentation fault"])
    monkeypatch.setattr(check_gpu, "run", lambda command, seconds: next(said))
    assert not check_gpu.check_sanitizer(jobs=1, seconds=1.0)
    rows = json.loads((folder / "sanitizer.json").read_text())["cases"]
    assert [row["tool"] for row in rows] == ["memcheck"] * 3 + ["racecheck"] * 3
    assert rows[-1]["summary"] == "no summary: Segmentation fault"


def test_reads_must_be_near_the_bytes_there_are(monkeypatch):
    good, fair, bad = (f'{{"ratio": {ratio}}}\n' for ratio in (1.03, 1.18, 1.3))
    cases = {4 * good: True, 3 * good + fair: True, 3 * good: False}
    cases |= {2 * good + 2 * fair: False, 3 * good + bad: False}
    for output, passes in cases.items():
        monkeypatch.setattr(check_gpu, "run", lambda *_, output=output: output)
        assert check_gpu.check_dram(jobs=1, seconds=1.0) is passes
    monkeypatch.setattr(check_gpu, "run", lambda *_: "no ncu")
    assert not check_gpu.check_dram(jobs=1, seconds=1.0)


def test_the_committed_reads_pass():
    path = Path(__file__).parents[2] / "bench" / "results" / "dram_reads_h100.json"
    rows = json.loads(path.read_text())["cases"]
    assert check_gpu.near_unique([row["ratio"] for row in rows])
