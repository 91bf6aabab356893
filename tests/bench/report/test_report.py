"""The report of a benchmark: the page, its plots and the text; no number is real."""

import itertools
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deft_jax.bench import extras
from deft_jax.bench.report import data as report_data
from deft_jax.bench.report import plot_bars, plot_style
from deft_jax.bench.report.columns import FLAG_NOTE
from deft_jax.bench.report.report import WIDTH, print_report, report_lines, write_report
from deft_jax.errors import DeftError
from tests.support.bench.made_up_report import METHODS, made_up_report, made_up_run

SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
REFERENCES = {"src", "href", "srcset", "data", "action", "poster"}


class Page(HTMLParser):
    """What is in a page: tags, references, text, and the cells of each row."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in REFERENCES]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def report() -> dict:
    return made_up_report()


@pytest.fixture(scope="module")
def written(report: dict, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_report(report, tmp_path_factory.mktemp("bench") / "new")


def test_the_page_needs_no_other_file(written: list[Path]):
    text = written[0].read_text()
    page = Page(text)
    assert page.references
    assert all(r.startswith("data:image/png;base64,") for r in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_has_every_run(report: dict, written: list[Path]):
    rows = Page(written[0].read_text()).rows
    for method in METHODS:
        name = report_data.METHODS[method]
        own = [row for row in rows if row[0] == name and row[1] == "mosaic_gpu"]
        runs = [run for run in report["runs"] if run["method"] == method]
        assert len(own) == 4 * len(runs)
        steps = [row[3] for row in own[: len(runs)] if "failed" not in row[2]]
        times = [run["step_ms"] for run in runs if "step_ms" in run]
        assert steps == [report_data.significant(ms) for ms in times]
    reasons = [row[2] for row in rows if len(row) == 3]
    assert reasons == ["failed: out of memory: needs 88 GB of 80"] * 4


def test_plots_are_not_blank(written: list[Path]):
    plots = [path for path in written if path.suffix == ".png"]
    assert {path.stem for path in plots} >= {
        *("step_latency_width", "roofline", "breakdown_few_shot", "io_few_shot"),
        *("breakdown_reasoning", "io_speculative", "io_trees"),
    }
    for path in plots:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] >= 1000 and pixels.shape[0] >= 300
        inked = (pixels < 200).any(axis=-1)
        assert 0.005 < inked.mean() < 0.6, path.name
        border = [inked[0], inked[-1], inked[:, 0], inked[:, -1]]
        assert not any(edge.any() for edge in border), f"{path.name} is cut off"


@pytest.mark.parametrize("methods", [("deft_flatten",), tuple(METHODS)])
def test_one_set_of_parameters_has_no_lines(tmp_path: Path, methods: tuple[str, ...]):
    few = made_up_report(methods, widths=(50,), others=False)
    names = {path.name for path in write_report(few, tmp_path)}
    assert names == {
        *("report.html", "report.json", "roofline.png"),
        *("breakdown_few_shot.png", "io_few_shot.png"),
    }


def test_prompts_are_swept_if_there_are_several(tmp_path: Path):
    many = made_up_report(
        ("radix", "deft_flatten"), (1, 4, 16, 64), (1000, 4000, 8000, 20000), False
    )
    names = {path.stem for path in write_report(many, tmp_path)}
    assert {"step_latency_prompt_tokens", "step_latency_width"} < names
    assert {"breakdown_few_shot", "breakdown_few_shot_2", "io_few_shot_2"} < names


def test_missing_numbers_and_failures_are_handled(tmp_path: Path, capsys):
    run = made_up_run("trees", {}, "radix", 10, 1)
    empty = {name: value for name, value in run.items() if isinstance(value, str)}
    for runs in (
        [],
        [empty | {"error": "out of memory"}],
        [empty],
        [empty | dict.fromkeys(["step_ms", "io", "steps", "roofline_ms"])],
        [empty | {"step_ms": float("nan"), "io": {"kv_bytes": 0}}],
        [empty | {"step_ms": 1.5}],
    ):
        bare = {"device": None, "runs": runs}
        assert write_report(bare, tmp_path)[0].exists()
        print_report(bare)
    assert "failed: out of memory" in capsys.readouterr().out


def test_the_last_line_is_the_report(report: dict, capsys):
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == report
    assert "device: Made-up GPU 80GB" in lines
    assert any("failed: out of memory: needs 88 GB of 80" in line for line in lines)


def test_the_text_fits_a_terminal(report: dict):
    long = json.loads(json.dumps(report))
    long["card"]["flags"] = "--some=flag " * 30
    long["runs"][0]["implementation"] = "another one"
    long["runs"].append(long["runs"][0] | {"implementation": "with a long name"})
    lines = list(report_lines(long))
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.startswith("  Flash-Decoding (with a long name)") for line in lines)
    heading = next(line for line in lines if "attention" in line)
    row = next(line for line in lines if line.startswith("  DeFT-Flatten"))
    assert len(heading) <= len(row) <= WIDTH


def test_names_are_escaped(tmp_path: Path, capsys):
    bad = '<img src="http://x">$a$ & \x1b[31m'
    run = made_up_run(bad, {"name": bad}, "radix", 100, 4)
    run |= {"method": bad, "implementation": bad}
    failed = {"workload": bad, "parameters": {"name": bad}, "error": bad}
    report = {"device": bad, "card": {bad: bad}, "runs": [run, failed]}
    paths = write_report(report, tmp_path)
    page = Page(paths[0].read_text())
    assert all(r.startswith("data:") for r in page.references)
    assert any(bad[:19] in cell for row in page.rows for cell in row)
    assert all(path.parent == tmp_path for path in paths)
    print_report(report)
    assert "\x1b" not in capsys.readouterr().out


def test_speedups_are_over_the_fastest_radix():
    runs = [
        {"workload": "w", "method": method, "step_ms": step_ms, "implementation": name}
        for method, step_ms, name in [
            ("deft_flatten", 2.0, "a"),
            ("radix", 8.0, "a"),
            ("radix", 4.0, "b"),
            ("medusa", None, "a"),
        ]
    ]
    other = {"workload": "w", "parameters": {"width": 2}, "method": "deft_flatten"}
    first, second = report_data.make_groups({"runs": [*runs, other]})
    assert [run["speedup"] for run in first.runs] == [0.5, 1.0, None, 2.0]
    assert [run["speedup"] for run in second.runs] == [None]


def test_numbers_are_short():
    values = [None, 0, 0.00012345, 0.0123, 1.234, 12.34, 123.4, 1234.5, -2.5]
    assert [report_data.significant(value) for value in values] == [
        *("–", "0", "0.000123", "0.012", "1.23", "12.3", "123", "1,234", "-2.50")
    ]


def test_what_to_install_is_said():
    with pytest.raises(DeftError, match=r"need no_such_module.*deft-jax\[bench\]"):
        extras.require("json", "no_such_module")


def test_the_text_needs_no_matplotlib():
    code = "import sys; from deft_jax.bench.report.report import print_report\n"
    code += "print_report({'runs': [{}]})\n"
    code += "assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def without_parts(run: dict) -> dict:
    """Return the run as a device without a profiler, such as a CPU, gives it."""
    return run | dict.fromkeys(plot_bars.COMPONENTS)


def legend_of(runs: list[dict]) -> list[str]:
    """Return the entries of the time plot's legend."""
    groups = report_data.make_groups({"runs": runs})
    palette = plot_style.Palette(report_data.all_series(groups))
    [legend] = plot_bars.breakdown(groups, palette, "here").legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_legend_names_the_parts_that_are_there():
    run = made_up_run("few-shot", {"width": 4}, "deft_flatten", 100, 4)
    parts = [name for name, _ in plot_bars.COMPONENTS.values()]
    assert legend_of([run | {"step_ms": 2 * run["step_ms"]}]) == [
        *parts,
        "rest of the wall time",
    ]
    assert legend_of([run]) == parts
    assert legend_of([run | {"grouping_ms": None, "other_ms": 0.0}]) == [
        *(part for part in parts if part not in ("grouping", "other")),
        "rest of the wall time",
    ]
    assert legend_of([without_parts(run)]) == [plot_bars.WITHOUT_PARTS]


def test_colours_of_methods_are_far_apart():
    def lab(color: str) -> np.ndarray:
        """Return a colour in CIE L*a*b*, D65."""
        rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
        xyz = SRGB_TO_XYZ @ linear / (0.9505, 1.0, 1.089)
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    colors = [lab(color) for color in plot_style.METHOD_COLORS.values()]
    pairs = itertools.combinations(colors, 2)
    # Orange and vermilion, which looked alike, are 33 apart.
    assert min(float(np.linalg.norm(a - b)) for a, b in pairs) > 50


def test_what_cannot_be_is_flagged(tmp_path: Path):
    run = made_up_run("few-shot", {"width": 4}, "radix", 100, 4)
    other = run | {"method": "deft_flatten", "roofline_fraction": 0.5}
    above = {"runs": [run | {"roofline_fraction": 3.88}, other]}
    text = "\n".join(report_lines(above))
    assert "388!" in text
    assert " ".join(text.split()).endswith(FLAG_NOTE)
    page = write_report(above, tmp_path)[0].read_text()
    assert page.count("388!") >= 2 and FLAG_NOTE in page
    assert "388! ★" not in page and 'class="best">388!' not in page
    below = {"runs": [run | {"roofline_fraction": 0.997}]}
    assert "!" not in "\n".join(report_lines(below))
    assert FLAG_NOTE not in write_report(below, tmp_path)[0].read_text()


def test_conditions_name_the_processor_and_versions():
    report = {"device": "cpu", "cpu": "Some CPU 3000", "cores": 2, "deft_jax": "0.1.0"}
    lines = list(report_lines(report | {"runs": []}))
    assert {"CPU: Some CPU 3000", "cores: 2", "deft-jax: 0.1.0"} <= set(lines)
    assert report_data.conditions(report) == "Some CPU 3000"
