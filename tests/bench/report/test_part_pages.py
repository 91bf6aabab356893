"""Pages and plots of `deft-jax bench attention` and `cpu`, without measuring much."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from deft_jax.bench.attention import measure as attention
from deft_jax.bench.attention import page as attention_page
from deft_jax.bench.cpu import (
    command as cpu_command,
)
from deft_jax.bench.cpu import (
    decode as cpu_decode,
)
from deft_jax.bench.cpu import (
    page as cpu_page,
)
from deft_jax.cli.main import main
from tests.bench.report.test_report import Page

RESULTS = Path(__file__).parents[3] / "bench" / "results"


def load(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def attention_report() -> dict:
    """Three trees that were measured and one that failed."""
    report = load("attention_h100.json")
    cases = report["cases"]
    facts = attention.facts(attention.select_cases("3")[0])
    failed = json.loads(json.dumps(facts)) | {"error": "boom <b>"}
    return report | {"cases": [cases[0], cases[37], cases[46], failed]}


def check_page(text: str, num_plots: int) -> Page:
    page = Page(text)
    assert len(page.references) == num_plots
    assert all(r.startswith("data:image/png;base64,") for r in page.references)
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    return page


def check_plot(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    inked = (pixels < 200).any(axis=-1)
    assert 0.003 < inked.mean() < 0.5
    assert not any(e.any() for e in (inked[0], inked[-1], inked[:, 0], inked[:, -1]))


def test_the_page_of_the_attention(tmp_path: Path):
    report = attention_report()
    page, plot = attention_page.write_page(report, tmp_path)
    check_plot(plot)
    rows = check_page(page.read_text(), 1).rows
    assert len(rows) == 5
    assert all(len(row) == len(rows[0]) for row in rows)
    first, without_peer, _, failed = rows[1:]
    assert first == [
        *("1,2,64; 8,256,32", "32/8", "15.0", "14.3", "3.28", "23.2", "fasttree"),
        *("1.22", "18.7", "34.5", "2.7e-03"),
    ]
    assert without_peer[5:8] == ["–"] * 3
    assert failed[2] == "failed: boom <b>"


def test_the_plot_has_times_rooflines_and_peers():
    report = attention_report()
    [ax] = attention_page.draw(report["cases"][:3], "here").axes
    marks = [line for line in ax.lines if line.get_marker() != "None"]
    shown = sorted(float(np.asarray(line.get_xdata())[0]) for line in marks)
    names = "kernel_cold_us", "roofline_us", "peer_cold_us"
    times = [row[name] for row in report["cases"][:3] for name in names]
    assert shown == sorted(time for time in times if time is not None)


def test_a_page_without_a_case_that_ran(tmp_path: Path):
    report = attention_report()
    report["cases"] = report["cases"][3:]
    [page] = attention_page.write_page(report, tmp_path)
    check_page(page.read_text(), 0)


def test_attention_ends_with_json(tmp_path, capsys, monkeypatch):
    asked = []

    def measure_all(cases, options, out):
        asked.append((len(cases), options))
        report = attention_report()
        out.write_text(json.dumps(report))
        return report

    monkeypatch.setattr(attention, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(attention, "measure_all", measure_all)
    folder = tmp_path / "new"
    code = main(["bench", "attention", "--quick", "--output", str(folder)])
    assert code == 1, "a case has failed"
    assert asked == [(3, attention.Options(loop=False))]
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == attention_report()
    assert "read_gbs: 3205.8" in lines
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.json", "report.html", "attention.png"}


def test_the_module_says_that_it_needs_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        attention.main(["--out", str(tmp_path / "x.json"), "--cases", "0"])
    assert "from an NVIDIA GPU, got cpu" in capsys.readouterr().err


def test_the_page_of_the_cpu(tmp_path: Path):
    page, plot = cpu_page.write_page(load("cpu_decode.json"), tmp_path)
    check_plot(plot)
    rows = check_page(page.read_text(), 1).rows
    assert rows[1][:5] == ["1.00", "1.41", "106", "0.666", "31.2"]
    assert ["1 row times every weight", "27.2 ms"] in rows


def test_steps_are_beside_the_pass_of_as_many_rows():
    steps, rates = cpu_page.draw(load("cpu_decode.json"), "here").axes
    assert heights(steps) == [31.22, 27.19, 75.31, 54.71]
    assert heights(rates) == [105.5, 158.3, 118.3, 158.3]


def heights(ax: Axes) -> list[float]:
    """Return the heights of a panel's bars, from left to right."""
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    return [bar.get_height() for bar in bars]


def test_cpu_ends_with_json(tmp_path, capsys, monkeypatch):
    repeats = []

    def run(number):
        repeats.append(number)
        return load("cpu_decode.json")

    monkeypatch.setattr(cpu_decode, "run", run)
    assert main(["bench", "cpu", "--quick", "--output", str(tmp_path)]) == 0
    assert repeats == [1]
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == load("cpu_decode.json")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.json", "report.html", "cpu.png"}


def test_the_cpu_must_be_what_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cpu_command.jax, "default_backend", lambda: "gpu")
    assert main(["bench", "cpu", "--output", str(tmp_path / "new")]) == 2
    assert "set JAX_PLATFORMS=cpu" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
