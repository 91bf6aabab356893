"""Page and plot of the attention benchmark."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..report import plot_style as style
from ..report.data import card_facts
from ..report.part_page import Table, cell, render_part
from ..report.plots import Plot

FACTS = ("implementation", "dtype", "page_size", "repeats")
"""Of the report, beside those of every report."""

COLUMNS = {
    "tree": "nodes; tokens per node",
    "heads": "query/KV",
    "attention, cold": "us",
    "warm": "us",
    "roofline": "us",
    "best peer": "us",
    "peer": "",
    "speed-up": "×",
    "grouping": "us",
    "call": "us",
    "error": "",
}
NUMBERS = ("kernel_cold_us", "kernel_warm_us", "roofline_us", "peer_cold_us")
MORE_NUMBERS = ("speedup", "grouping_us", "call_us")

MARKS = {
    "roofline_us": ("roofline", {"marker": "|", "color": style.INK, "ms": 9}),
    "kernel_cold_us": ("tree_attention", {"marker": "o", "color": "#D55E00", "ms": 5}),
    "peer_cold_us": ("best peer", {"marker": "D", "color": "#0072B2", "ms": 4}),
}
"""Times of the plot, what they are called and how they look."""


def write_page(report: dict, folder: Path) -> list[Path]:
    """Write attention.png and report.html; return the page, then the plot."""
    where = f"{report['device']} · {report['dtype']}"
    measured = [row for row in report["cases"] if "error" not in row]
    plots = []
    if measured:
        path = style.save(draw(measured, where), folder / "attention.png")
        caption = "Attention of one layer, cold L2 cache, on a logarithmic scale."
        plots.append(Plot(path, caption))
    note = (
        "Device time of all kernels of one call, with other data in the L2 cache before"
        " it (cold) and without; the roofline is measured in the same run; peers were"
        " measured once, on an H100, and their times hold a graph launch."
    )
    table = Table("All trees", note, COLUMNS, [_row(row) for row in report["cases"]])
    facts = card_facts(report | {"card": {name: report[name] for name in FACTS}})
    page = folder / "report.html"
    html = render_part("deft-jax attention benchmark", where, facts, plots, [table])
    page.write_text(html, encoding="utf-8")
    return [page, *(plot.path for plot in plots)]


def draw(rows: Sequence[dict], where: str) -> Figure:
    """Time, roofline and best peer of each tree, one below the other."""
    figure, [ax] = style.make_figure(
        "Attention against the roofline and the best peer",
        where,
        panels=1,
        panel=(8.5, 1.2 + 0.19 * len(rows)),
    )
    ax.set_xscale("log")
    for place, row in enumerate(rows):
        _draw_row(ax, place, row)
    ax.set_yticks(range(len(rows)), [style.plain(_label(row)) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    style.name_axes(ax, "", "us per layer (log scale)", "")
    style.log_axis(ax.xaxis)
    looks = MARKS.values()
    handles = [Line2D([], [], ls="", label=name, **look) for name, look in looks]
    style.add_legend(figure, handles)
    return figure


def _draw_row(ax: Axes, place: int, row: dict) -> None:
    times = [row[name] for name in MARKS if row[name]]
    ax.plot([min(times), max(times)], [place] * 2, color=style.GRID, zorder=1)
    for name, (_, look) in MARKS.items():
        if row[name]:
            ax.plot(row[name], place, ls="", **look)


def _row(row: dict) -> list[str]:
    heads = f"{row['num_q_heads']}/{row['num_kv_heads']}"
    if "error" in row:
        rest = [cell(None)] * (len(COLUMNS) - 3)
        return [_tree(row), heads, f"failed: {row['error']}", *rest]
    numbers = [cell(row[name]) for name in NUMBERS]
    more = [cell(row[name]) for name in MORE_NUMBERS]
    peer = cell(row["peer"])
    return [_tree(row), heads, *numbers, peer, *more, f"{row['rel_err']:.1e}"]


def _label(row: dict) -> str:
    """Return the tree and its query and KV heads in words."""
    return f"{_tree(row)} ({row['num_q_heads']}/{row['num_kv_heads']})"


def _tree(row: dict) -> str:
    levels = (row["nodes"], row["tokens_per_node"])
    return "; ".join(",".join(map(str, level)) for level in levels)
