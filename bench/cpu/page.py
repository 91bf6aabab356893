"""Page and plot of the CPU benchmark."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..report import plot_style as style
from ..report.data import significant
from ..report.part_page import Table, cell, render_part
from ..report.plots import Plot

FACTS = (
    *("model", "dtype", "cpu", "cores", "jax", "deft_jax", "python", "date"),
    *("repeats", "load_s"),
)
"""Conditions that the page names, where a report has them."""

COLUMNS = {
    "branches": "",
    "prefill": "s",
    "prefill rate": "GFLOP/s",
    "of matrix rate": "",
    "step": "ms",
    "over one row's pass": "×",
    "tokens": "1/s",
    "KV reads saved": "",
}
CEILINGS = {
    "matrix_gflops": ("products of a prefill chunk", "GFLOP/s"),
    "weight_pass_ms": ("1 row times every weight", "ms"),
    "weight_pass_16_ms": ("16 rows times every weight", "ms"),
    "weight_pass_gbs": ("bytes of the weights over the pass of 1 row", "GB/s"),
}
PASSES = {1: "weight_pass_ms", 16: "weight_pass_16_ms"}
"""Ceiling of a step by the number of branches."""

MEASURED, CEILING = "#D55E00", "#BBBBBB"


def write_page(report: dict, folder: Path) -> list[Path]:
    """Write cpu.png and report.html; return the page, then the plot."""
    where = (
        f"{report['model']} · {report['dtype']} · {report['cores']} cores of"
        f" {report.get('cpu', report['device'])}"
    )
    plot = Plot(
        style.save(draw(report, where), folder / "cpu.png"),
        "A decode step and the prefill beside what the machine's products allow.",
    )
    note = (
        f"{report['prompt_tokens']} prompt tokens, {report['new_tokens']} new tokens"
        " per branch; medians of whole calls."
    )
    runs = [[cell(value) for value in run.values()] for run in report["runs"]]
    ceilings = [
        [name, f"{significant(report['ceilings'][key])} {unit}"]
        for key, (name, unit) in CEILINGS.items()
    ]
    tables = [
        Table("Runs", note, COLUMNS, runs),
        Table(
            "Ceilings",
            "Bare products of the model's own weights, in the same run.",
            {"what": "", "rate or time": ""},
            ceilings,
        ),
    ]
    facts = {
        name.replace("_", " "): str(report[name]) for name in FACTS if name in report
    }
    page = folder / "report.html"
    html = render_part("deft-jax CPU benchmark", where, facts, [plot], tables)
    page.write_text(html, encoding="utf-8")
    return [page, plot.path]


def draw(report: dict, where: str) -> Figure:
    """Draw the rates of steps and prefill beside their ceilings."""
    figure, axes = style.make_figure(
        "Decoding on the CPU against its ceilings", where, panels=2, panel=(4.2, 3.2)
    )
    runs, ceilings = report["runs"], report["ceilings"]
    names = [f"{run['n']} branches" if run["n"] > 1 else "1 branch" for run in runs]
    steps = [(run["step_ms"], ceilings[PASSES[run["n"]]]) for run in runs]
    rates = [(run["prefill_gflops"], ceilings["matrix_gflops"]) for run in runs]
    for ax, pairs, unit, title in [
        (axes[0], steps, "ms", "decode step: lower is better"),
        (axes[1], rates, "GFLOP/s", "prefill: higher is better"),
    ]:
        _draw_pairs(ax, pairs)
        ax.set_xticks(range(len(names)), names)
        ax.grid(axis="x", visible=False)
        style.name_axes(ax, title, "", unit)
    looks = {"measured": MEASURED, "ceiling in the same run": CEILING}
    handles = [Patch(color=color, label=name) for name, color in looks.items()]
    style.add_legend(figure, handles)
    return figure


def _draw_pairs(ax: Axes, pairs: list[tuple[float, float]]) -> None:
    """Draw each measured bar beside its ceiling's, with their numbers."""
    for place, pair in enumerate(pairs):
        for shift, value, color in zip(
            (-0.2, 0.2), pair, (MEASURED, CEILING), strict=True
        ):
            ax.bar(place + shift, value, 0.36, color=color)
            text = significant(value)
            ax.text(
                place + shift, value, text, size=style.SMALL, ha="center", va="bottom"
            )
    ax.margins(y=0.12)
