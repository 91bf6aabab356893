"""The columns of a report's tables: what is in them, their units, what is best."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from .data import Group, number, significant

GIGA, MEGA = 1e9, 1e6

FLAG = "!"
"""Mark behind a number that cannot be what its name says."""

FLAG_NOTE = (
    f"{FLAG} above 100 % of the roofline: the device read faster than the ceiling that "
    "was measured, since weights and KV of so small a model stay in its caches; the "
    "number says nothing about the method."
)


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of each run.

    Attributes:
        heading: what the number is, in words for the head of the column.
        unit: unit of the number as it is shown.
        key: name of the number in the run, which `data.number` takes.
        divisor: what the number in the run is divided by to get the unit.
        best: the least or the largest of the numbers; None if neither is better.
        most: the largest number that can be right, None if there is none.
    """

    heading: str
    unit: str
    key: str
    divisor: float = 1.0
    best: Callable[[Iterable[float]], float] | None = None
    most: float | None = None

    def value(self, run: dict) -> float | None:
        """Return the number in the column's unit, None if it is missing."""
        found = number(run, self.key)
        return None if found is None else found / self.divisor

    def text(self, run: dict) -> str:
        """Return the number as it is shown, with FLAG where it is above `most`."""
        value = self.value(run)
        above = value is not None and self.most is not None and value > self.most
        return significant(value) + (FLAG if above else "")

    def marked(self, group: Group) -> list[bool]:
        """Say which of a group's runs are the best; none if all are the same."""
        texts = [self.text(run) for run in group.runs]
        known = {
            value: text
            for run, text in zip(group.runs, texts, strict=True)
            if (value := self.value(run)) is not None and not text.endswith(FLAG)
        }
        if self.best is None or len(set(known.values())) < 2:
            return [False] * len(texts)
        return [text == known[self.best(known)] for text in texts]


STEP = Column("step", "ms", "step_ms", best=min)
SPEEDUP = Column("vs radix", "×", "speedup", best=max)
ROOFLINE = Column("of roofline", "%", "roofline_fraction", 0.01, max, most=100.0)
PEAK = Column("peak memory", "GB", "peak_bytes", GIGA, best=min)
TOKENS_PER_S = Column("tokens/s", "1/s", "tokens_per_s", best=max)
TTFT = Column("first token", "ms", "ttft_ms", best=min)

COMPONENTS = (
    Column("model layers", "ms", "model_ms"),
    Column("attention", "ms", "attention_ms", best=min),
    Column("grouping", "ms", "grouping_ms"),
    Column("tree ops", "ms", "tree_ops_ms"),
    Column("sampling", "ms", "sampling_ms"),
    Column("other", "ms", "other_ms"),
)
BYTES = (
    Column("KV", "MB/step", "io.kv_bytes", MEGA, best=min),
    Column("queries, outputs", "MB/step", "io.query_output_bytes", MEGA),
    Column("masks", "MB/step", "io.mask_bytes", MEGA),
    Column("intermediates", "MB/step", "io.intermediate_bytes", MEGA),
    Column("partials", "MB/step", "io.partial_bytes", MEGA),
)

TABLES: dict[str, Sequence[Column]] = {
    "Latency": (
        Column("steps", "", "steps"),
        STEP,
        SPEEDUP,
        ROOFLINE,
        TTFT,
        Column("prefill", "ms", "prefill_ms", best=min),
        Column("decode", "s", "decode_s", best=min),
        Column("end to end", "s", "end_to_end_s", best=min),
        Column("per output token", "ms", "time_per_output_token_ms", best=min),
        TOKENS_PER_S,
    ),
    "Time of a step": (STEP, *COMPONENTS),
    "Attention's reads and writes": BYTES,
    "Memory and roofline": (
        PEAK,
        Column("weights", "GB", "weight_bytes", GIGA),
        Column("unique KV", "MB/step", "kv_bytes", MEGA),
        Column("partial results", "MB/step", "partial_bytes", MEGA),
        Column("operations", "GFLOP/step", "flops", GIGA),
        Column("roofline", "ms", "roofline_ms"),
        ROOFLINE,
    ),
}
"""Of the page, by heading."""

TERMINAL = (
    STEP,
    SPEEDUP,
    *COMPONENTS[1:5],
    TTFT,
    TOKENS_PER_S,
    ROOFLINE,
    PEAK,
)
"""Of the text."""


def is_above_roofline(run: dict) -> bool:
    """Say whether a run seems faster than the roofline allows; see FLAG_NOTE."""
    return FLAG in ROOFLINE.text(run)
