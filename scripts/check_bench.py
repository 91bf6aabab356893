"""Runs `deft-jax bench` in its quick form and checks what it writes.

    python scripts/check_bench.py FOLDER

Each workload runs with a third of the methods, so that every method runs once.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from deft_jax.accounting.methods import METHODS

RUNS = {
    "few-shot": ("flash_decoding", "radix"),
    "reasoning": ("deft_node", "deft_node_chunk"),
    "speculative": ("medusa", "deft_flatten"),
}
PLOTS = {"roofline.png", "breakdown_{}.png", "io_{}.png"}
PNG = b"\x89PNG\r\n\x1a\n"
DEADLINE_S = 900
"""Of all commands together."""


def main() -> int:
    """Return 1 if a command fails or writes less than it should."""
    root = Path(sys.argv[1])
    assert sorted(sum(RUNS.values(), ())) == sorted(METHODS)
    begin = time.monotonic()
    problems = []
    for workload, methods in RUNS.items():
        left_s = begin + DEADLINE_S - time.monotonic()
        folder = root / workload
        problems += [
            f"{workload}: {p}" for p in check(workload, methods, folder, left_s)
        ]
        print(f"{workload}: {time.monotonic() - begin:.0f} s so far", flush=True)
    print("\n".join(problems) or "the benchmarks wrote what they should")
    return int(bool(problems))


def check(workload: str, methods: tuple[str, ...], folder: Path, left_s: float):
    """Yield what is wrong with one command and its report."""
    command = Path(sys.executable).with_name("deft-jax")
    arguments = ["bench", workload, "--quick", "--methods", ",".join(methods)]
    try:
        process = subprocess.run(
            [command, *arguments, "--output", folder],
            stdout=subprocess.PIPE,
            text=True,
            timeout=max(left_s, 1),
        )
    except subprocess.TimeoutExpired:
        yield f"not done {DEADLINE_S} s after the first command began"
        return
    if process.returncode:
        yield f"exit code {process.returncode}"
    lines = process.stdout.splitlines()
    report = json.loads((folder / "report.json").read_text())
    if not lines or json.loads(lines[-1]) != report:
        yield "the last line is not the report"
    if [run["method"] for run in report["runs"]] != list(methods):
        yield "not every method has run"
    yield from (run["error"] for run in report["runs"] if "error" in run)
    for plot in PLOTS:
        path = folder / plot.format(workload.replace("-", "_"))
        if not path.exists() or not path.read_bytes().startswith(PNG):
            yield f"{path.name} is no plot"
    page = (folder / "report.html").read_text()
    if page.count("data:image/png;base64,") != len(PLOTS):
        yield "the page has not every plot"


if __name__ == "__main__":
    sys.exit(main())
