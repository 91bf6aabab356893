"""The page of a benchmark of one part: facts, plots and tables in one HTML file."""

import dataclasses
from collections.abc import Mapping, Sequence

from .data import significant
from .page import embedded, load_template
from .plots import Plot


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers of a page.

    Attributes:
        heading: what stands above the table.
        note: a sentence or two about it.
        columns: names to units, "" for none; the first names the rows.
        rows: texts of each row, one per column.
    """

    heading: str
    note: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[str]]


def render_part(
    heading: str,
    where: str,
    facts: Mapping[str, str],
    plots: Sequence[Plot],
    tables: Sequence[Table],
) -> str:
    """Return the page as HTML.

    Args:
        heading: what was measured.
        where: device and model of the measurement, in a few words.
        facts: conditions of the measurement, by name.
        plots: images in the order of the page, which embeds them.
        tables: numbers that come below the plots.
    """
    return load_template("part.html.jinja").render(
        heading=heading, where=where, facts=facts, plots=embedded(plots), tables=tables
    )


def cell(value: object) -> str:
    """Return a number or a word as the pages show it; a dash for None."""
    if value is None:
        return significant(None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return significant(float(value))
    return str(value)
