"""Measured time of a step against the time that the device's ceilings allow."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plot_style as style
from .data import Group, all_series, number

GUIDES = {1.0: "-", 1.3: "--", 2.0: ":"}
"""Multiples of the roofline with a line of their own."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def roofline(
    groups: Sequence[Group], palette: style.Palette, where: str
) -> Figure | None:
    """Draw a point per run on logarithmic axes; None where no run has both times."""
    points = [
        (group.workload, run, x, y)
        for group in groups
        for run in group.runs
        if (x := number(run, "roofline_ms")) and (y := number(run, "step_ms"))
    ]
    if not points:
        return None
    figure, [ax] = style.make_figure(
        "Step latency against the roofline", where, panels=1, panel=(7.5, 5.6)
    )
    markers = _markers([workload for workload, *_ in points])
    shown = [group for group in groups if any(p[0] == group.workload for p in points)]
    series = all_series(shown)
    for workload, run, x, y in points:
        one = next(s for s in series if s == s.of(run))
        ax.plot(x, y, **_look(palette, one), marker=markers[workload])
    _draw_guides(ax, [p[2] for p in points], [p[3] for p in points])
    style.name_axes(ax, "", "roofline of the step (ms)", "measured step latency (ms)")
    handles = [
        Line2D([], [], **_look(palette, one), marker="o", label=palette.name(one))
        for one in series
    ]
    handles += [
        Line2D([], [], color=style.MUTED, ls="", marker=marker, label=style.plain(name))
        for name, marker in markers.items()
    ]
    style.add_legend(figure, handles)
    return figure


def _markers(workloads: Sequence[str]) -> dict[str, str]:
    names = dict.fromkeys(workloads)
    return {name: MARKERS[at % len(MARKERS)] for at, name in enumerate(names)}


def _look(palette: style.Palette, series) -> dict:
    color = palette.color(series)
    face = "none" if palette.hollow(series) else color
    return {
        "ls": "",
        "ms": 6.5,
        "alpha": 0.9,
        "mfc": face,
        "mec": color if face == "none" else "white",
    }


def _draw_guides(ax: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the lines of GUIDES over the range of the points, factors at their ends."""
    left, right = min(x) / 1.25, max(x) * 1.25
    ax.set_xscale("log")
    ax.set_yscale("log")
    for factor, dashes in GUIDES.items():
        ends = [left, right], [factor * left, factor * right]
        ax.plot(*ends, color=style.MUTED, ls=dashes, lw=1.2, zorder=1)
        ax.annotate(
            f"{factor:g}×",
            (right, factor * right),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            size=style.SMALL,
            color=style.MUTED,
            annotation_clip=False,
        )
    ax.set_xlim(left, right)
    ax.set_ylim(min(left, min(y) / 1.1), max(2.2 * right, max(y) * 1.2))
    style.log_axis(ax.xaxis)
    style.log_axis(ax.yaxis)
