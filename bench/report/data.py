"""What the plots, the page and the text of a benchmark report have in common.

A report is one dict, as `report.write_report` describes it. Its runs are grouped here
by workload and parameters, and named, and compared with each other.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

METHODS = {
    "flash_decoding": "Flash-Decoding",
    "radix": "Radix",
    "medusa": "Medusa",
    "deft_node": "DeFT-Node",
    "deft_node_chunk": "DeFT-Node-Chunk",
    "deft_flatten": "DeFT-Flatten",
}
"""Names of the methods, in the order of every plot and table."""

BASELINE = "radix"
"""What speed-ups are over."""

CONDITIONS = ("model", "shape", "model_shape", "dtype")
"""Entries of a report's card that titles repeat."""

COUNTS = ("steps", "tokens", "drafts")
"""Parameters that are written as in "64 drafts"; so are those that end in _tokens."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one workload with the same parameters.

    Attributes:
        workload: its name.
        parameters: what the workload was made with.
        runs: one per method and implementation, in the order of METHODS; each has a
            `speedup` over the baseline in addition to what was measured.
    """

    workload: str
    parameters: dict[str, Any]
    runs: tuple[dict, ...]

    @property
    def title(self) -> str:
        """Workload and parameters in words."""
        return ": ".join(filter(None, [self.workload, describe(self.parameters)]))

    def run(self, series: "Series") -> dict | None:
        """Return the run of a method and implementation, None if there is none."""
        return next((run for run in self.runs if Series.of(run) == series), None)


@dataclasses.dataclass(frozen=True)
class Series:
    """A method as an implementation runs it: a line of a plot.

    Attributes:
        method: one of METHODS, or any other.
        implementation: "" if there is none to tell.
    """

    method: str
    implementation: str

    @classmethod
    def of(cls, run: dict) -> "Series":
        """Return the series that a run belongs to."""
        return cls(str(run.get("method")), str(run.get("implementation") or ""))

    @property
    def name(self) -> str:
        """The method's name."""
        return METHODS.get(self.method, self.method)


def make_groups(report: dict) -> list[Group]:
    """Group the runs by workload and parameters, in the order of their first runs."""
    found: dict[tuple[str, str], list[dict]] = {}
    for run in report.get("runs", []):
        parameters = json.dumps(run.get("parameters") or {}, sort_keys=True)
        found.setdefault((str(run.get("workload")), parameters), []).append(run)
    return [
        Group(workload, dict(runs[0].get("parameters") or {}), _compared(runs))
        for (workload, _), runs in found.items()
    ]


def _compared(runs: Sequence[dict]) -> tuple[dict, ...]:
    """Return runs in the order of METHODS, with speed-ups over the fastest baseline."""
    order = {method: place for place, method in enumerate(METHODS)}
    ordered = sorted(runs, key=lambda run: order.get(Series.of(run).method, len(order)))
    base = [number(run, "step_ms") for run in runs if run.get("method") == BASELINE]
    base_ms = min(filter(None, base), default=None)

    def speedup(run: dict) -> float | None:
        step_ms = number(run, "step_ms")
        return base_ms / step_ms if base_ms and step_ms else None

    return tuple(run | {"speedup": speedup(run)} for run in ordered)


def all_series(groups: Iterable[Group]) -> list[Series]:
    """Return the methods and implementations of all runs, in METHODS' order."""
    found = dict.fromkeys(Series.of(run) for group in groups for run in group.runs)
    order = {method: place for place, method in enumerate(METHODS)}
    return sorted(found, key=lambda series: order.get(series.method, len(order)))


def labels(series: Sequence[Series]) -> dict[Series, str]:
    """Name the series; with the implementation where a method has several."""
    methods = [one.method for one in series]
    return {
        one: f"{one.name} ({one.implementation})"
        if methods.count(one.method) > 1
        else one.name
        for one in series
    }


def number(run: dict, key: str) -> float | None:
    """Return a number of a run, None if it is missing, not finite or the run failed.

    Args:
        run: a run of a report.
        key: its name; "io.mask_bytes" for one of the bytes below `io`.
    """
    value: Any = None if run.get("error") else run
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of the positive values, None if there are none."""
    logs = [math.log(value) for value in values if value is not None and value > 0]
    return math.exp(statistics.fmean(logs)) if logs else None


def significant(value: float | None, digits: int = 3) -> str:
    """Write a number as text: 0.012, 1.23, 12.3, 1,234; a dash if there is none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    most = 3 if abs(value) >= 1e-3 else 9
    return f"{value:,.{min(places, most)}f}"


def describe(parameters: dict[str, Any]) -> str:
    """Put parameters in words: "4,000 prompt tokens, width 50"."""
    return ", ".join(_words(name, value) for name, value in parameters.items())


def _words(name: str, value: object) -> str:
    if name == "name":
        return str(value)
    words = name.replace("_", " ")
    text = f"{value:,}" if type(value) is int else str(value)
    count = type(value) is int and (name in COUNTS or name.endswith("_tokens"))
    return f"{text} {words}" if count else f"{words} {text}"


def common(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the parameters that all groups share, if there are several groups."""
    first = groups[0].parameters
    return {
        name: value
        for name, value in first.items()
        if len(groups) > 1
        and all(group.parameters.get(name) == value for group in groups)
    }


def without(parameters: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the parameters but those that are named."""
    left = dict.fromkeys(names)
    return {name: value for name, value in parameters.items() if name not in left}


def conditions(report: dict) -> str:
    """Return the device, shape and dtype in words, for titles."""
    card = report.get("card") or {}
    device = report.get("device")
    # JAX calls every processor "cpu".
    device = report.get("cpu", device) if device == "cpu" else device
    named = [device, *(card.get(name) for name in CONDITIONS)]
    return " · ".join(str(value) for value in named if value)


def card_facts(report: dict) -> dict[str, str]:
    """Return the conditions of a report in words; what is unknown is left out."""
    known = {
        "device": report.get("device"),
        "CPU": report.get("cpu"),
        "cores": report.get("cores"),
        "JAX": report.get("jax"),
        "deft-jax": report.get("deft_jax"),
        "Python": report.get("python"),
        "date": report.get("date"),
        "read bandwidth, measured": _with_unit(report.get("read_gbs"), "GB/s"),
        "matrix rate, measured": _with_unit(report.get("matrix_tflops"), "TFLOP/s"),
    }
    for name, value in (report.get("card") or {}).items():
        plain = isinstance(value, str | int | float)
        known[name.replace("_", " ")] = str(value) if plain else json.dumps(value)
    return {
        name: str(value) for name, value in known.items() if value not in (None, "null")
    }


def _with_unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{significant(value, 4)} {unit}"
