"""How every plot looks: sizes, colours, titles and legends.

Figures are made without pyplot, so no state is shared and no display is needed.
"""

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from deft_jax.results.terminal_text import one_line

from .data import METHODS, Series, labels, significant

# Okabe and Ito's colours, which the colour-blind tell apart, and one of Tol's: the
# former's orange and blue are too near to vermilion and sky blue for thin lines.
METHOD_COLORS = dict(
    zip(
        METHODS,
        ["#000000", "#332288", "#CC79A7", "#56B4E9", "#009E73", "#D55E00"],
        strict=True,
    )
)
OTHER_COLORS = ("#E69F00", "#F0E442", "#999999")
"""Colours of methods that are not in METHODS, in turn."""

LINES = ("-", "-.", ":")
HATCHES = ("", "////", "....")
"""Of the first, second and third implementation of a method."""

INK, MUTED, GRID = "#222222", "#5f5f5f", "#dddddd"
TITLE, TEXT, SMALL = 13, 9.5, 8.5
DPI = 150
COLUMNS = 3


class Palette:
    """The name and colour of every method, and the look of its implementations.

    Args:
        series: all of the report, so that every plot gives a method the same look.
    """

    def __init__(self, series: Sequence[Series]):
        others = dict.fromkeys(s.method for s in series if s.method not in METHODS)
        self._colors = METHOD_COLORS | dict(
            zip(others, itertools.cycle(OTHER_COLORS), strict=False)
        )
        self._names = labels(series)
        self._places: dict[Series, int] = {}
        for one in series:
            methods = [before.method for before in self._places]
            self._places[one] = methods.count(one.method)

    def name(self, series: Series) -> str:
        """Return the method's name for legends."""
        return plain(self._names[series])

    def color(self, series: Series) -> str:
        """Return the method's colour."""
        return self._colors[series.method]

    def line(self, series: Series) -> str:
        """Return the implementation's line style; never the roofline's dashes."""
        return LINES[self._places[series] % len(LINES)]

    def hatch(self, series: Series) -> str:
        """Return the hatch of the implementation's bars."""
        return HATCHES[self._places[series] % len(HATCHES)]

    def hollow(self, series: Series) -> bool:
        """Say whether the markers are hollow: those of all but a method's first are."""
        return self._places[series] > 0


def plain(text: str) -> str:
    """Return one line of text without controls that is never taken for a formula."""
    return one_line(text).replace("$", r"\$")


def make_figure(
    title: str, subtitle: str, *, panels: int, panel: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title, and as many panels as are asked for.

    Args:
        title: what the figure shows.
        subtitle: under which conditions.
        panels: number of panels.
        panel: width and height of each, in inches, with its labels.
    """
    columns = 2 if panels == 4 else min(panels, COLUMNS)
    rows = -(-panels // columns)
    width = max(panel[0] * columns, 7.5)
    lines = textwrap.wrap(subtitle, int(width * 13.5))
    header = 0.52 + 0.17 * len(lines)
    height = rows * panel[1] + header + 0.5
    layout = ConstrainedLayoutEngine(
        rect=(0.006, 0.0, 0.988, 1 - header / height), h_pad=0.08, w_pad=0.08
    )
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 0.12 / height
    figure.text(
        0.015, top, plain(title), size=TITLE, weight="bold", color=INK, va="top"
    )
    below = top - 0.29 / height
    note = "\n".join(map(plain, lines))
    figure.text(0.015, below, note, size=SMALL, color=MUTED, va="top", linespacing=1.35)
    return figure, list(_axes(figure, rows, columns, panels))


def _axes(figure: Figure, rows: int, columns: int, panels: int) -> Iterator[Axes]:
    for index in range(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(MUTED)
        axes.tick_params(labelsize=SMALL, colors=INK, which="both")
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        yield axes


def name_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a panel and its axes."""
    axes.set_title(plain(title), size=TEXT, color=INK, loc="left")
    axes.set_xlabel(plain(x), size=TEXT, color=INK)
    axes.set_ylabel(plain(y), size=TEXT, color=INK)


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below all panels."""
    width = sum(0.5 + 0.085 * len(str(handle.get_label())) for handle in handles)
    rows = math.ceil(width / figure.get_figwidth())
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=-(-len(handles) // rows),
        fontsize=TEXT,
        handlelength=1.5,
        columnspacing=1.4,
        frameon=False,
        labelcolor=INK,
    )


def is_first_in_row(axes: Axes) -> bool:
    """Say whether nothing is to the left of a panel."""
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def log_axis(axis: Axis, ticks: Iterable[float] | None = None) -> None:
    """Label a logarithmic axis with plain numbers, at given ticks if there are any.

    The scale must have been set before.
    """
    if ticks is None:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    text = significant(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=DPI)
    return path
