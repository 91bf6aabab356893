"""Reports of benchmark runs: a page, plots, and text for the terminal.

A report is one dict that JSON can hold; a number that was not measured is None:

    device, jax, date, read_gbs, matrix_tflops,
    card: {conditions, whatever they are},
    runs: [{workload, parameters: {...}, method, implementation, steps,
        step_ms, model_ms, attention_ms, grouping_ms, tree_ops_ms, sampling_ms,
        other_ms, kernel_ms, profiled_steps, kernels: {name: ms}, library_kernels,
        ttft_ms, prefill_ms, decode_s, end_to_end_s,
        time_per_output_token_ms, tokens_per_s,
        weight_bytes, kv_bytes, partial_bytes,
        io: {kv_bytes, query_output_bytes, mask_bytes, intermediate_bytes,
             partial_bytes},
        roofline_ms, roofline_fraction, peak_bytes, flops}]

kv_bytes, partial_bytes, io and flops are means per step. A run that failed has `error`,
why in words, in place of the numbers. docs/benchmarks.md defines all of them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len

from deft_jax.results.terminal_text import head, one_line, wrap

from ..extras import require
from .columns import FLAG_NOTE, TERMINAL, Column, is_above_roofline
from .data import Group, Series, all_series, card_facts, labels, make_groups

WIDTH = 100
INDENT = "  "
HEADING_LINES = 3


def write_report(report: dict, folder: Path) -> list[Path]:
    """Write report.json, the plots as PNG files, and report.html.

    The JSON is written first, so that it is kept where the plots cannot be drawn.

    Args:
        report: the dict that this module describes.
        folder: is made if it is not there.

    Returns:
        What was written, the page first.

    Raises:
        DeftError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "report.json"
    data.write_text(json.dumps(report, indent=1) + "\n")
    require("matplotlib")
    # The text below needs no plots, and so no matplotlib.
    from .page import render_page
    from .plots import draw

    plots = draw(report, folder)
    page = folder / "report.html"
    page.write_text(render_page(report, plots), encoding="utf-8")
    return [page, data, *(plot.path for plot in plots)]


def print_report(report: dict) -> None:
    """Print the conditions, a table, and the whole report as one line of JSON."""
    for line in report_lines(report):
        print(line)
    print(json.dumps(report))


def report_lines(report: dict) -> Iterator[str]:
    """Yield the lines of the text without the JSON, of at most WIDTH cells."""
    for name, value in card_facts(report).items():
        first, *rest = wrap(one_line(f"{name}: {value}"), WIDTH - len(INDENT))
        yield first
        yield from (INDENT + line for line in rest)
    groups = make_groups(report)
    if not groups:
        return
    yield ""
    yield from _table(groups)
    if any(is_above_roofline(run) for group in groups for run in group.runs):
        yield ""
        yield from wrap(FLAG_NOTE, WIDTH)


def _table(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a heading of several lines, then the groups and their runs."""
    names = {s: one_line(name) for s, name in labels(all_series(groups)).items()}
    widths = [_width(column, groups) for column in TERMINAL]
    left = max(len(INDENT) + cell_len(name) for name in names.values())
    left = min(left, WIDTH - sum(widths) - len(widths))
    headings = [_heading(column) for column in TERMINAL]
    for line in range(HEADING_LINES):
        yield _row("", [heading[line] for heading in headings], left, widths)
    for group in groups:
        yield ""
        yield head(one_line(group.title), WIDTH)
        for run in group.runs:
            yield from _lines(names[Series.of(run)], run, left, widths)


def _lines(name: str, run: dict, left: int, widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a run; a name that is too wide has a line of its own."""
    name = INDENT + name
    if cell_len(name) > left:
        yield head(name, WIDTH)
        name = ""
    if run.get("error"):
        reason = one_line(f"failed: {run['error']}")
        room = WIDTH - left - 1
        yield f"{_padded(name, left)} {head(reason, room)}"
    else:
        yield _row(name, [column.text(run) for column in TERMINAL], left, widths)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _row(name: str, cells: Sequence[str], left: int, widths: Sequence[int]) -> str:
    right = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return " ".join([_padded(name, left), *right]).rstrip()


def _heading(column: Column) -> list[str]:
    """Return a heading's words and its unit, one a line, ending on the last line."""
    lines = [*column.heading.split(), column.unit]
    return [""] * (HEADING_LINES - len(lines)) + lines


def _width(column: Column, groups: Sequence[Group]) -> int:
    texts = [column.text(run) for group in groups for run in group.runs]
    return max(map(len, [*_heading(column), *texts]))
