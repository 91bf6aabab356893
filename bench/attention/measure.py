"""Tree attention on one GPU against other libraries and the device's own ceilings.

    python -m deft_jax.bench.attention.measure --out FILE [--cases all|0,3,5] [--quick]
        [--implementation mosaic_gpu] [--page-size 16] [--repeats 10]

bfloat16, one query per leaf, random data, pages in random order. Per tree:

* kernel_cold_us, kernel_warm_us: device time of all kernels of one attention call,
  summed, with other data in the L2 cache before each call and without; medians. What
  is prepared once per step for all layers is not in it;
* grouping_us: the same, warm, of that preparation;
* call_us: wall time of grouping, preparation and attention together, many times in one
  jitted loop where each call waits for the one before; null with --quick;
* rel_err: relative error by norm against the float32 oracle;
* roofline_us: the larger of reading the tree's KV once and of the products' operations,
  each at the best rate measured in the same run;
* speedup: the time of the best peer over that of the cold kernels and a graph launch,
  which is in the peers' times.

The file is written after each case, so that a run that is cut off leaves its results.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import os
import statistics
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import jax

from deft_jax.attention.device import compute_capability
from deft_jax.attention.tuning.search import wall_seconds
from deft_jax.errors import DeftError

from ..gpu.ceilings import Ceilings, measure_ceilings
from ..gpu.timing import KernelTimer, l2_eviction, record_kernels
from .cases import Case, select_cases
from .programs import DTYPE, LOOP_CALLS, Programs, build

GRAPH_LAUNCH_US = 4.0
"""Part of every peer's time and of none of ours."""

LOOP_REPEATS = 3
BATCH = 12
"""Cases that are compiled side by side, before the first of them is timed."""

COLUMNS = {
    "name": 19,
    "num_kv_heads": 12,
    "kernel_cold_us": 14,
    "kernel_warm_us": 14,
    "grouping_us": 11,
    "call_us": 9,
    "roofline_us": 11,
    "rel_err": 8,
    "peer_cold_us": 12,
    "speedup": 7,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured of each case.

    Attributes:
        implementation: name of what runs tree attention.
        page_size: `P`.
        repeats: calls of each program that are timed.
        loop: whether the wall time of whole calls is measured.
    """

    implementation: str = "mosaic_gpu"
    page_size: int = 16
    repeats: int = 10
    loop: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if a case failed."""
    parser = argparse.ArgumentParser(description="tree attention benchmark")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--cases", default="all", help="numbers, as in 0,3,5")
    parser.add_argument("--quick", action="store_true", help="no wall times")
    parser.add_argument("--implementation", default=Options.implementation)
    parser.add_argument("--page-size", type=int, default=Options.page_size)
    parser.add_argument("--repeats", type=int, default=Options.repeats)
    given = parser.parse_args(arguments)
    try:
        cases = select_cases(given.cases)
        check_device()
    except DeftError as error:
        parser.error(str(error))
    options = Options(
        given.implementation, given.page_size, given.repeats, not given.quick
    )
    report = measure_all(cases, options, given.out)
    print_table(report["cases"])
    return int(any("error" in row for row in report["cases"]))


def check_device() -> None:
    """Check that there is a GPU, before anything is compiled.

    Raises:
        DeftError: JAX has no NVIDIA GPU.
    """
    if compute_capability() is None:
        raise DeftError(
            "the attention benchmark takes the times of kernels from an NVIDIA GPU, got"
            f" {jax.default_backend()}; other devices have the decode benchmarks"
        )


def measure_all(cases: Sequence[Case], options: Options, out: Path) -> dict:
    """Measure the device's ceilings, then the cases, as `run` does."""
    timer = KernelTimer(record_kernels, l2_eviction())
    ceilings = measure_ceilings(timer, options.repeats)
    return run(cases, options, timer, ceilings, out)


def run(
    cases: Sequence[Case],
    options: Options,
    timer: KernelTimer,
    ceilings: Ceilings,
    out: Path,
) -> dict:
    """Measure the cases, write the report after each, and return it.

    A case that fails has an "error" in place of times, and the others go on.
    """
    report = card(options) | dataclasses.asdict(ceilings) | {"cases": []}
    for case, programs in _compiled(cases, options):
        try:
            row = measure(case, programs.result(), options, timer, ceilings)
        except Exception as error:
            traceback.print_exc()
            row = facts(case) | {"error": f"{type(error).__name__}: {error}"[:300]}
        report["cases"].append(row)
        out.write_text(json.dumps(report, indent=1) + "\n")
        print(_line(row), flush=True)
    return report


def _compiled(
    cases: Sequence[Case], options: Options
) -> Iterator[tuple[Case, Future[Programs]]]:
    """Yield the cases with their programs, batch by batch.

    No compiler runs while a case is measured.
    """
    settings = (options.implementation, options.page_size, options.loop)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in itertools.batched(cases, BATCH):
            programs = [pool.submit(build, case, *settings) for case in batch]
            wait(programs)
            yield from zip(batch, programs, strict=True)


def card(options: Options) -> dict:
    """Return the conditions of a run."""
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "dtype": DTYPE.name,
        "loop_calls": LOOP_CALLS if options.loop else 0,
    } | dataclasses.asdict(options)


def facts(case: Case) -> dict:
    """Return what is known of a case without measuring it."""
    return {
        "name": case.name,
        "nodes": case.nodes,
        "tokens_per_node": case.tokens_per_node,
        "num_q_heads": case.num_q_heads,
        "num_kv_heads": case.num_kv_heads,
        "head_dim": case.head_dim,
        "leaves": case.leaves,
        "kv_bytes": case.kv_bytes(DTYPE.itemsize),
        "peer": case.peer,
        "peer_cold_us": case.peer_cold_us,
    }


def measure(
    case: Case,
    programs: Programs,
    options: Options,
    timer: KernelTimer,
    ceilings: Ceilings,
) -> dict:
    """Return one row of the report."""
    tree, slots = programs.tree, programs.slots
    data = programs.data(jax.random.key(0))
    prepared = programs.prepare(tree, slots)
    out, _ = programs.attend(*data, prepared)
    assert programs.error is not None
    rel_err = float(programs.error(tree, slots, *data, out))

    def kernels(call, cold):
        return timer.measure(call, repeats=options.repeats, cold=cold)

    cold = kernels(lambda: programs.attend(*data, prepared), True)
    warm = kernels(lambda: programs.attend(*data, prepared), False)
    grouping = kernels(lambda: programs.prepare(tree, slots), False)
    loop, call_us = programs.loop, None
    if loop is not None:
        loop_s = wall_seconds(lambda: loop(tree, slots, *data), repeats=LOOP_REPEATS)
        call_us = loop_s * 1e6 / LOOP_CALLS
    known = facts(case)
    speedup = None
    if case.peer_cold_us is not None:
        speedup = round(case.peer_cold_us / (cold.total_us + GRAPH_LAUNCH_US), 3)
    return known | {
        "partial_bytes": programs.steps.partial_bytes(prepared),
        "kernel_cold_us": round(cold.total_us, 2),
        "kernel_warm_us": round(warm.total_us, 2),
        "kernels": {name: round(us, 2) for name, us in cold.kernels_us.items()},
        "grouping_us": round(grouping.total_us, 2),
        "call_us": None if call_us is None else round(call_us, 2),
        "rel_err": float(f"{rel_err:.3g}"),
        "roofline_us": round(ceilings.roofline_us(known["kv_bytes"], case.flops), 2),
        "speedup": speedup,
    }


def print_table(rows: Sequence[dict]) -> None:
    """Print the rows, and the geometric mean of the speedups."""
    print("\n" + " ".join(name.rjust(width) for name, width in COLUMNS.items()))
    for row in rows:
        print(_line(row))
    speedups = [row["speedup"] for row in rows if row.get("speedup")]
    if speedups:
        mean = math.exp(statistics.fmean(math.log(x) for x in speedups))
        print(f"geometric mean of {len(speedups)} speedups: {mean:.3f}")


def _line(row: dict) -> str:
    if "error" in row:
        return f"{row['name'].rjust(COLUMNS['name'])} {row['error']}"
    cells = ("-" if row[name] is None else str(row[name]) for name in COLUMNS)
    widths = COLUMNS.values()
    return " ".join(
        cell.rjust(width) for cell, width in zip(cells, widths, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
