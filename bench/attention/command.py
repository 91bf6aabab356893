"""`deft-jax bench attention`: the kernels alone, with a page."""

import argparse
import json
from pathlib import Path

from . import measure as attention
from .cases import select_cases


def bench_attention(options: argparse.Namespace) -> int:
    """Measure the trees, write JSON, page and plot; return 1 if one failed.

    The JSON is written after each tree.

    Raises:
        DeftError: there is no GPU, or no such tree.
        OSError: the report cannot be written.
    """
    cases = select_cases(options.cases)
    attention.check_device()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "report.json"
    report = attention.measure_all(
        cases, attention.Options(loop=not options.quick), out
    )
    # Needs matplotlib, which the measurement does not.
    from .page import write_page

    for path in [*write_page(report, folder), out]:
        print(path)
    for name, value in report.items():
        if name != "cases":
            print(f"{name}: {value}")
    attention.print_table(report["cases"])
    print(json.dumps(report))
    return int(any("error" in row for row in report["cases"]))
