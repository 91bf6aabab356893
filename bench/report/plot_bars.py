"""Bars: where the time of a step goes, and the bytes that it moves."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from deft_jax.results.terminal_text import head, one_line

from . import plot_style as style
from .data import (
    Group,
    Series,
    all_series,
    common,
    describe,
    number,
    significant,
    without,
)

# Apart from the methods' colours; Tol's "muted", for the colour-blind too.
COMPONENTS = {
    "model_ms": ("model layers", "#BBBBBB"),
    "attention_ms": ("attention", "#882255"),
    "grouping_ms": ("grouping", "#44AA99"),
    "tree_ops_ms": ("tree operations", "#DDCC77"),
    "sampling_ms": ("sampling", "#CC6677"),
    "other_ms": ("other", "#666666"),
}
BYTES = {
    "io.kv_bytes": "KV",
    "io.query_output_bytes": "queries,\noutputs",
    "io.mask_bytes": "masks",
    "io.intermediate_bytes": "inter-\nmediates",
    "io.partial_bytes": "partials",
}
REST = {
    "height": 0.7,
    "facecolor": "none",
    "edgecolor": style.MUTED,
    "linestyle": ":",
}
"""Look of the wall time that is in no component."""

WITHOUT_PARTS = "wall time; its parts were not measured on this device"
"""What a bar is where no component was measured."""

LEAST_REST = 0.01
"""Share of the wall time from which it is shown."""

MEGABYTE = 1e6
ONE_SCALE = 3.0
"""Ratio of the longest bars of panels below which all panels have the same scale."""

REASON_WIDTH = 34


def breakdown(groups: Sequence[Group], palette: style.Palette, where: str) -> Figure:
    """Draw the parts of a step as stacked bars: a panel a group, a bar a run."""
    series = all_series(groups)
    figure, axes = _panels("Time of a decode step", groups, where, len(series) * 0.27)
    longest = [_longest(group) for group in groups]
    alike = max(longest) < ONE_SCALE * min(longest)
    for index, (ax, group) in enumerate(zip(axes, groups, strict=True)):
        for place, one in enumerate(series):
            _stack(ax, place, group.run(one))
        ax.set_yticks(range(len(series)), [palette.name(one) for one in series])
        ax.tick_params(axis="y", length=0, labelleft=style.is_first_in_row(ax))
        ax.set_ylim(len(series) - 0.5, -0.5)
        ax.set_xlim(0, 1.2 * (max(longest) if alike else longest[index]))
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.grid(axis="y", visible=False)
        style.name_axes(ax, _title(group, groups), "ms per step", "")
    style.add_legend(figure, _legend([run for group in groups for run in group.runs]))
    return figure


def _legend(runs: Sequence[dict]) -> list[Patch]:
    """Return an entry for each part that some bar has.

    Where no run was profiled, as on a CPU, a bar is the wall time and nothing else.
    """
    handles = [
        Patch(color=color, label=name)
        for key, (name, color) in COMPONENTS.items()
        if any(number(run, key) for run in runs)
    ]
    if any(_rest(run) for run in runs):
        label = "rest of the wall time" if handles else WITHOUT_PARTS
        look = {name: value for name, value in REST.items() if name != "height"}
        handles.append(Patch(label=label, **look))
    return handles


def _rest(run: dict) -> float:
    """Return the wall time in no component, in ms; 0 where it is too little to show."""
    step_ms = number(run, "step_ms") or 0.0
    rest = step_ms - sum(number(run, key) or 0.0 for key in COMPONENTS)
    return rest if rest > LEAST_REST * step_ms else 0.0


def _panels(title: str, groups: Sequence[Group], where: str, height: float):
    """Make a figure with a panel per group; what all share is said once."""
    workload, same = groups[0].workload, describe(common(groups))
    subtitle = " · ".join(filter(None, [where, same]))
    width = 7.5 if len(groups) == 1 else 4.3
    return style.make_figure(
        f"{title}, {workload}",
        subtitle,
        panels=len(groups),
        panel=(width, height + 0.95),
    )


def _title(group: Group, groups: Sequence[Group]) -> str:
    return describe(without(group.parameters, common(groups)))


def _stack(ax: Axes, place: int, run: dict | None) -> None:
    """Draw a bar with the wall time at its end, or say why there is none."""
    step_ms = number(run, "step_ms") if run else None
    if run is None or step_ms is None:
        reason = "not run" if run is None else str(run.get("error") or "no time")
        text = head(one_line(reason), REASON_WIDTH)
        _note(ax, 0, place, text, style="italic")
        return
    left = 0.0
    for key, (_, color) in COMPONENTS.items():
        width = number(run, key) or 0.0
        ax.barh(place, width, left=left, height=0.72, color=color)
        left += width
    if rest := _rest(run):
        ax.barh(place, rest, left=left, **REST)
    _note(ax, max(left, step_ms), place, significant(step_ms))


def _note(ax: Axes, x: float, y: float, text: str, **options) -> None:
    ax.annotate(
        style.plain(text),
        (x, y),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        size=style.SMALL,
        color=style.INK,
        **options,
    )


def _longest(group: Group) -> float:
    """Return the length of the longest bar."""
    lengths = [
        max(
            number(run, "step_ms") or 0.0,
            sum(number(run, key) or 0.0 for key in COMPONENTS),
        )
        for run in group.runs
    ]
    return max(lengths, default=0.0) or 1.0


def io_bytes(groups: Sequence[Group], palette: style.Palette, where: str) -> Figure:
    """Draw the bytes of each kind on a logarithmic scale, methods side by side."""
    series = all_series(groups)
    figure, axes = _panels("Bytes that attention reads and writes", groups, where, 2.3)
    low, high = _decades(groups)
    for ax, group in zip(axes, groups, strict=True):
        ax.set_yscale("log")
        ax.set_xlim(-0.6, len(BYTES) - 0.4)
        ax.set_ylim(low, high)
        for place, one in enumerate(series):
            _bars(ax, group.run(one), place, len(series), palette, one)
        ax.set_xticks(range(len(BYTES)), list(BYTES.values()))
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="x", visible=False)
        first = style.is_first_in_row(ax)
        style.name_axes(
            ax, _title(group, groups), "", "MB per step (log scale)" if first else ""
        )
        style.log_axis(ax.yaxis, _powers(low, high))
    style.add_legend(figure, [_patch(palette, one) for one in series])
    return figure


def _bars(
    ax: Axes,
    run: dict | None,
    place: int,
    count: int,
    palette: style.Palette,
    series: Series,
) -> None:
    """Draw one method's bar of each kind; "0" where it moves none."""
    width = 0.84 / max(count, 3)
    for kind, key in enumerate(BYTES):
        value = number(run, key) if run else None
        x = kind + (place - (count - 1) / 2) * width
        if value:
            bar = _patch_look(palette, series)
            ax.bar(x, value / MEGABYTE, width * 0.92, **bar)
        elif value == 0:
            low = ax.get_ylim()[0]
            ax.text(x, low * 1.1, "0", size=6.5, color=style.MUTED, ha="center")


def _patch_look(palette: style.Palette, series: Series) -> dict:
    return {
        "facecolor": palette.color(series),
        "hatch": palette.hatch(series),
        "edgecolor": "white",
        "linewidth": 0,
    }


def _patch(palette: style.Palette, series: Series) -> Patch:
    return Patch(label=palette.name(series), **_patch_look(palette, series))


def _decades(groups: Sequence[Group]) -> tuple[float, float]:
    """Return the powers of ten around all bytes, in MB."""
    runs = [run for group in groups for run in group.runs]
    values = [v / MEGABYTE for run in runs for key in BYTES if (v := number(run, key))]
    least, most = min(values, default=1.0), max(values, default=1.0)
    low = math.floor(math.log10(least * 0.999))
    return 10.0**low, 10.0 ** max(math.ceil(math.log10(most * 1.001)), low + 1)


def _powers(low: float, high: float) -> list[float]:
    """Return powers of ten in a range: all, every second or every third."""
    exponents = range(round(math.log10(low)), round(math.log10(high)) + 1)
    step = 1 + (len(exponents) - 1) // 8
    return [10.0**exponent for exponent in exponents[::step]]
