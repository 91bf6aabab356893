"""`deft-jax bench cpu`: SmolLM2 against the machine's ceilings, with a page."""

import argparse
import json
from pathlib import Path

import jax

from deft_jax.errors import DeftError

from . import decode as cpu_decode

REPEATS = 5


def bench_cpu(options: argparse.Namespace) -> int:
    """Measure, then write JSON, page and plot.

    Raises:
        DeftError: JAX runs on another device.
        OSError: the report cannot be written.
    """
    if jax.default_backend() != "cpu":
        raise DeftError(
            f"the CPU benchmark needs JAX on the CPU, got {jax.default_backend()}; set"
            " JAX_PLATFORMS=cpu"
        )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    report = cpu_decode.run(1 if options.quick else REPEATS)
    out = folder / "report.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    # Needs matplotlib, which the measurement does not.
    from .page import write_page

    for path in [*write_page(report, folder), out]:
        print(path)
    print(json.dumps(report))
    return 0
