"""The plots of a benchmark report; `draw` makes those for which there are data."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plot_style as style
from .data import (
    Group,
    Series,
    all_series,
    common,
    conditions,
    describe,
    make_groups,
    number,
    without,
)
from .plot_bars import breakdown, io_bytes
from .plot_roofline import roofline

SWEEPS = {"width": "branches", "prompt_tokens": "prompt length (tokens)"}
"""Parameters that step latency is shown against, and what their axes say."""

SWEPT = "few-shot"
LOG_FROM = 6.0
"""Ratio of the largest to the least number from which an axis is logarithmic."""

MOST_PANELS = 12


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot in its file.

    Attributes:
        path: the PNG file.
        caption: what it shows, in a sentence.
    """

    path: Path
    caption: str


def draw(report: dict, folder: Path) -> list[Plot]:
    """Write the plots of a report as PNG files into a folder."""
    groups = make_groups(report)
    palette = style.Palette(all_series(groups))
    drawn = []
    for name, caption, figure in _figures(groups, palette, conditions(report)):
        path = style.save(figure, folder / f"{name}.png")
        drawn.append(Plot(path, caption))
    return drawn


def _figures(
    groups: Sequence[Group], palette: style.Palette, where: str
) -> Iterator[tuple[str, str, Figure]]:
    """Yield file names, captions and figures."""
    for parameter in SWEEPS:
        figure = step_latency(groups, palette, where, parameter)
        if figure is not None:
            caption = f"Wall time of a decode step against {SWEEPS[parameter]}."
            yield f"step_latency_{parameter}", caption, figure
    for name, some in _parts(groups, "step_ms"):
        caption = "Where the time of a decode step goes; wall time at the bars' ends."
        yield f"breakdown_{name}", caption, breakdown(some, palette, where)
    for name, some in _parts(groups, "io.kv_bytes"):
        caption = "Bytes that attention reads and writes in a step, by kind."
        yield f"io_{name}", caption, io_bytes(some, palette, where)
    figure = roofline(groups, palette, where)
    if figure is not None:
        caption = "Wall time of a step against the least time that the device allows."
        yield "roofline", caption, figure


def _parts(groups: Sequence[Group], key: str) -> Iterator[tuple[str, list[Group]]]:
    """Yield the groups with a number, by workload and MOST_PANELS at a time."""
    for workload in dict.fromkeys(group.workload for group in groups):
        some = [
            group
            for group in groups
            if group.workload == workload
            and any(number(run, key) is not None for run in group.runs)
        ]
        slug = re.sub(r"\W+", "_", workload.lower()).strip("_")[:40] or "workload"
        for place, part in enumerate(itertools.batched(some, MOST_PANELS)):
            yield (f"{slug}_{place + 1}" if place else slug), list(part)


def step_latency(
    groups: Sequence[Group], palette: style.Palette, where: str, parameter: str
) -> Figure | None:
    """Draw step latency against a parameter, a panel for each of the others.

    Returns:
        None where no panel would have two points of a line.
    """
    panels = _sweeps(groups, parameter)
    if not panels:
        return None
    title = f"Step latency against {'width' if parameter == 'width' else 'prompt'}"
    small = len(panels) > 1
    same = common([group for panel in panels for group in panel])
    figure, axes = style.make_figure(
        f"{title}, {SWEPT}",
        " · ".join(filter(None, [where, describe(same)])),
        panels=len(panels),
        panel=(4.2, 3.4) if small else (7.5, 4.4),
    )
    for ax, panel in zip(axes, panels, strict=True):
        _draw_lines(ax, panel, palette, parameter)
        rest = describe(without(panel[0].parameters, [parameter, *same]))
        style.name_axes(ax, rest, SWEEPS[parameter], "step latency (ms)")
    series = all_series(group for panel in panels for group in panel)
    handles = [_line(palette, one) for one in series]
    handles.append(Line2D([], [], color=style.MUTED, ls="--", label="roofline"))
    style.add_legend(figure, handles)
    return figure


def _sweeps(groups: Sequence[Group], parameter: str) -> list[list[Group]]:
    """Group that differ in a parameter alone, in its order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.workload == SWEPT and parameter in group.parameters:
            rest = without(group.parameters, [parameter])
            found.setdefault(json.dumps(rest, sort_keys=True), []).append(group)
    return [
        sorted(panel, key=lambda group: group.parameters[parameter])
        for panel in found.values()
        if len([group for group in panel if _measured(group)]) > 1
    ]


def _measured(group: Group) -> bool:
    return any(number(run, "step_ms") is not None for run in group.runs)


def _draw_lines(
    ax: Axes, panel: Sequence[Group], palette: style.Palette, parameter: str
) -> None:
    for series in all_series(panel):
        points = _points(panel, parameter, series)
        ax.plot(*points, **_look(palette, series))
    x = [group.parameters[parameter] for group in panel]
    least = [_least(group, "roofline_ms") for group in panel]
    ax.plot(x, [y or float("nan") for y in least], color=style.MUTED, ls="--", lw=1.3)
    _scale(ax, x, [number(run, "step_ms") for group in panel for run in group.runs])


def _points(panel: Sequence[Group], parameter: str, series: Series):
    """Return x and y of a line, which has a gap where a run failed."""
    runs = [(group.parameters[parameter], group.run(series)) for group in panel]
    y = [number(run, "step_ms") if run else None for _, run in runs]
    return [x for x, _ in runs], [float("nan") if v is None else v for v in y]


def _least(group: Group, key: str) -> float | None:
    known = (number(run, key) for run in group.runs)
    return min((value for value in known if value is not None), default=None)


def _scale(ax: Axes, x: Sequence[float], y: Sequence[float | None]) -> None:
    known = [value for value in y if value]
    if max(x) / min(x) >= LOG_FROM:
        ax.set_xscale("log")
        style.log_axis(ax.xaxis, x)
    else:
        ax.set_xticks(list(x), [f"{value:,}" for value in x])
    if max(known) / min(known) >= LOG_FROM:
        ax.set_yscale("log")
        style.log_axis(ax.yaxis)
    else:
        ax.set_ylim(bottom=0)


def _look(palette: style.Palette, series: Series) -> dict:
    color = palette.color(series)
    face = "white" if palette.hollow(series) else color
    return {
        "color": color,
        "ls": palette.line(series),
        "lw": 1.8,
        "marker": "o",
        "ms": 5,
        "mfc": face,
    }


def _line(palette: style.Palette, series: Series) -> Line2D:
    return Line2D([], [], label=palette.name(series), **_look(palette, series))
