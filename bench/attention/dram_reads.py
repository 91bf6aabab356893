"""Bytes that attention reads from memory, as the GPU counts them.

    python -m deft_jax.bench.attention.dram_reads --out FILE [--cases 8,16,20,21]

Needs Nsight Compute (`ncu`), which empties the caches before each kernel. Each case of
`attention_cases` runs once in a process of its own; the trees, data and kernels are
those of `attention`. Where the ratio is 1, all of the KV was read once.
"""

import argparse
import csv
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from deft_jax.errors import DeftError

from .cases import Case, select_cases
from .measure import facts
from .programs import build

METRIC = "dram__bytes_read.sum"
PAGE_SIZE = 16
KERNELS = "regex:mosaic"


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the bytes that the cases read, and write the report after each one."""
    parser = argparse.ArgumentParser(description="DRAM reads of tree attention")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--cases", default="8,16,20,21", help="numbers, as in 0,3,5")
    parser.add_argument("--attend", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        cases = select_cases(given.cases)
    except DeftError as error:
        parser.error(str(error))
    if given.attend:
        attend(cases[0])
        return 0
    if given.out is None:
        parser.error("--out is required")
    rows = []
    for number, case in zip(given.cases.split(","), cases, strict=True):
        row = compared(case, counted(number))
        rows.append(row)
        report = {"date": datetime.date.today().isoformat(), "cases": rows}
        given.out.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(row), flush=True)
    return 0


def attend(case: Case) -> None:
    """Run the attention of one case once."""
    programs = build(case, "mosaic_gpu", PAGE_SIZE, loop=False, check=False)
    data = programs.data(jax.random.key(0))
    prepared = programs.prepare(programs.tree, programs.slots)
    jax.block_until_ready(programs.attend(*data, prepared))


def counted(number: str) -> dict[str, int]:
    """Return the bytes read by each kernel of one case, run under `ncu`.

    Raises:
        RuntimeError: `ncu` counted nothing; its output is in the message.
    """
    own = [sys.executable, "-m", "deft_jax.bench.attention.dram_reads", "--attend"]
    command = [
        *("ncu", "--csv", "--print-units", "base", "--clock-control", "none"),
        *("--metrics", METRIC, "--kernel-name", KERNELS),
        *(*own, "--cases", number),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    kernels = parse(run.stdout)
    if not kernels:
        raise RuntimeError(f"ncu counted no kernel: {run.stdout}{run.stderr}")
    return kernels


def parse(output: str) -> dict[str, int]:
    """Read bytes by kernel from what `ncu --csv` prints among other lines.

    "ID","Kernel Name","Metric Name","Metric Value"
    "0","mosaic","dram__bytes_read.sum","1,234"      ->  {"0 mosaic": 1234}
    """
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return {}
    return {
        f"{row['ID']} {row['Kernel Name']}": int(row["Metric Value"].replace(",", ""))
        for row in csv.DictReader(lines[start:])
        if row["Metric Name"] == METRIC
    }


def compared(case: Case, kernels: dict[str, int]) -> dict:
    """Return one row of the report."""
    read, known = sum(kernels.values()), facts(case)
    ratio = round(read / known["kv_bytes"], 4)
    return known | {"dram_read_bytes": read, "ratio": ratio, "kernels": kernels}


if __name__ == "__main__":
    sys.exit(main())
