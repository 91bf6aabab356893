"""The page of a benchmark report: one HTML file with everything in it."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from .columns import (
    FLAG,
    FLAG_NOTE,
    TABLES,
    Column,
    is_above_roofline,
)
from .data import (
    Group,
    Series,
    all_series,
    card_facts,
    conditions,
    geometric_mean,
    labels,
    make_groups,
    number,
    significant,
)
from .plots import Plot

TEMPLATES = Path(__file__).parent / "html"


def render_page(report: dict, plots: Sequence[Plot]) -> str:
    """Return the page as HTML; plots are embedded."""
    groups = make_groups(report)
    return load_template("report.html.jinja").render(
        heading="deft-jax benchmark",
        where=conditions(report),
        facts=card_facts(report),
        summary=summary(groups),
        plots=embedded(plots),
        tables={name: _table(columns, groups) for name, columns in TABLES.items()},
        columns=TABLES,
        runs=len(report.get("runs", [])),
        failures=sum(bool(run.get("error")) for run in report.get("runs", [])),
        flag_note=FLAG_NOTE
        if any(map(is_above_roofline, report.get("runs", [])))
        else "",
    )


def load_template(name: str) -> Template:
    """Return a template of a page, which escapes what it is given."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def embedded(plots: Sequence[Plot]) -> list[tuple[str, str]]:
    """Return images as data, and their captions."""
    return [(_as_data(plot.path), plot.caption) for plot in plots]


def summary(groups: Sequence[Group]) -> list[dict]:
    """Compare each method with the baseline and the roofline, over all runs."""
    series = all_series(groups)
    names = labels(series)
    return [_summed(names[one], one, groups) for one in series]


def _summed(name: str, series: Series, groups: Sequence[Group]) -> dict:
    runs = [run for group in groups if (run := group.run(series)) is not None]
    speedups = [s for run in runs if (s := number(run, "speedup")) is not None]
    share = geometric_mean(number(run, "roofline_fraction") for run in runs)
    return {
        "name": name,
        "runs": len(runs),
        "failures": sum(bool(run.get("error")) for run in runs),
        "speedup": significant(geometric_mean(speedups)),
        "least": significant(min(speedups, default=None)),
        "most": significant(max(speedups, default=None)),
        "roofline": significant(None if share is None else 100 * share)
        + (FLAG if any(map(is_above_roofline, runs)) else ""),
    }


def _table(columns: Sequence[Column], groups: Sequence[Group]) -> list[dict]:
    """Return each group's title and rows: name, cells with their marks, error."""
    names = labels(all_series(groups))
    return [
        {"title": group.title, "rows": _rows(columns, group, names)} for group in groups
    ]


def _rows(
    columns: Sequence[Column], group: Group, names: dict[Series, str]
) -> list[dict]:
    marks = zip(*(column.marked(group) for column in columns), strict=True)
    return [
        {
            "name": names[Series.of(run)],
            "implementation": Series.of(run).implementation,
            "cells": list(zip((c.text(run) for c in columns), marked, strict=True)),
            "error": run.get("error"),
        }
        for run, marked in zip(group.runs, marks, strict=True)
    ]


def _as_data(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:image/png;base64,{data}"
