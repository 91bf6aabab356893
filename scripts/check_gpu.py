"""Checks the kernels on a Hopper GPU: tests, memory and races, reads of DRAM.

    python scripts/check_gpu.py tests sanitizer dram [--jobs 6] [--minutes 4]

Run it from the root of the repository, in an environment with `deft-jax[cuda13,test]`;
`sanitizer` and `dram` need CUDA's `compute-sanitizer` and `ncu`. The results go to
`bench/results/`; each step keeps what was done when its time is over.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("bench/results")
SANITIZED = ("decode", "many_pieces", "three_pieces_merged_at_once")
TOOLS = ("memcheck", "racecheck")
NEAR, FARTHEST = 1.1, 1.2
"""Bytes read over unique bytes: of three cases of four, and of any."""

DRAM_CASES = 4
PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return 1 if one of them failed."""
    steps = {"tests": check_tests, "sanitizer": check_sanitizer, "dram": check_dram}
    parser = argparse.ArgumentParser(description="checks that need a Hopper GPU")
    parser.add_argument("steps", nargs="+", choices=steps)
    parser.add_argument("--jobs", type=int, default=6, help="processes of tests")
    parser.add_argument("--minutes", type=float, default=10.0, help="limit of a step")
    given = parser.parse_args(arguments)
    seconds = given.minutes * 60
    failed = [name for name in given.steps if not steps[name](given.jobs, seconds)]
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))


def check_tests(jobs: int, seconds: float) -> bool:
    """Run the GPU tests, spread over processes."""
    listed = run([*PYTEST, "--collect-only", "-q", "tests"], seconds)
    names = [line for line in listed.splitlines() if "::" in line]
    with tempfile.TemporaryDirectory() as folder:
        started = [
            start_tests(names[i::jobs], Path(folder, f"{i}")) for i in range(jobs)
        ]
        end = time.monotonic() + seconds
        for process in started:
            wait(process, end - time.monotonic())
        logs = [Path(folder, f"{i}.log").read_text() for i in range(jobs)]
    cases = [case for log in logs for case in outcomes(log)]
    done = {case["name"] for case in cases}
    failures = sum(not case["passed"] for case in cases)
    report = card() | {
        "tests": len(cases),
        "failures": failures,
        "not_run": [name for name in names if name not in done],
        "cases": cases,
    }
    write("gpu_tests.json", report)
    print(*(log for log in logs if "FAILED" in log), sep="\n")
    return bool(names) and not failures and not report["not_run"]


def start_tests(names: Sequence[str], path: Path) -> subprocess.Popen:
    """Start tests whose output goes to `path`.log."""
    path.write_text("\n".join(names))
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with path.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [*PYTEST, "-v", f"@{path}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def outcomes(log: str) -> list[dict]:
    """Return what pytest's verbose output says of each test.

    tests/engine/test_gpu.py::test_it PASSED  ->  {"name": .., "passed": True}
    """
    found = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR)\b", log, re.MULTILINE)
    return [{"name": name, "passed": how == "PASSED"} for name, how in found]


def check_sanitizer(jobs: int, seconds: float) -> bool:
    """Look for bad accesses and races in a case of each way to merge.

    A process per case: the tool was seen to crash at the second kernel of a process.
    """
    del jobs
    module = "tests.support.kernels.run_small_case"
    rows = []
    for tool in TOOLS:
        for case in SANITIZED:
            command = [
                "compute-sanitizer",
                "--tool",
                tool,
                sys.executable,
                "-m",
                module,
            ]
            output = run([*command, case], seconds / len(TOOLS) / len(SANITIZED))
            summary = re.findall(r"SUMMARY: (.*)", output)
            text = summary[-1] if summary else f"no summary: {output[-300:]}"
            rows.append({"tool": tool, "case": case, "summary": text})
            write("sanitizer.json", card() | {"cases": rows})
            print(rows[-1], flush=True)
    return all(re.match(r"0 (errors|hazards)", row["summary"]) for row in rows)


def check_dram(jobs: int, seconds: float) -> bool:
    """Count what the kernels read from memory."""
    del jobs
    out = RESULTS / "dram_reads_h100.json"
    command = [
        sys.executable,
        "-m",
        "deft_jax.bench.attention.dram_reads",
        "--out",
        str(out),
    ]
    output = run(command, seconds)
    print(output)
    ratios = re.findall(r'"ratio": ([\d.]+)', output)
    return near_unique([float(ratio) for ratio in ratios])


def near_unique(ratios: Sequence[float]) -> bool:
    """Return whether kernels read KV about once: bytes read over unique, by case."""
    near = sum(0.9 <= ratio <= NEAR for ratio in ratios)
    far = any(not 0.9 <= ratio <= FARTHEST for ratio in ratios)
    return len(ratios) == DRAM_CASES and near >= DRAM_CASES - 1 and not far


def run(command: Sequence[str], seconds: float) -> str:
    """Return the output of a command, which is ended when its time is over."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait(process, seconds)
        output.seek(0)
        return output.read()


def wait(process: subprocess.Popen, seconds: float) -> None:
    """Wait for a process, and end it when its time is over."""
    try:
        process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def card() -> dict:
    """Return where and when the checks ran."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    device, driver = (run(query, 20).strip().split(", ") + ["", ""])[:2]
    return {
        "device": device,
        "driver": driver,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
    }


def write(name: str, report: dict) -> None:
    """Write a report of `bench/results`."""
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
