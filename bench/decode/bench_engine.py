"""An engine whose runner has programs compiled ahead of time, clock and profiler."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner, decode_step_of, feed_step
from deft_jax.runtime.state import Chunk, Question, Report, Turn
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Planner

from ..gpu.timing import Record
from .setting import Programs

STEPS_BETWEEN = 16
"""Steps of the bursts between two that are profiled.

Those are cut to single steps, since CUPTI loses kernels of loops in command buffers.
"""


class IdsOnly:
    """A tokenizer for models without one: token ids in, no text out."""

    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Refuse text: there is nothing to encode it with."""
        raise NotImplementedError("a model without a tokenizer takes token ids")

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return no text."""
        return ""

    def stream(self, context: Sequence[int]) -> "IdsOnly":
        """Return a stream without text."""
        return self

    def copy(self) -> "IdsOnly":
        """Return the stream of a branch, without text."""
        return self

    def push(self, token: int) -> str:
        """Return no text of a token."""
        return ""

    def flush(self) -> str:
        """Return no text at the end."""
        return ""


@dataclasses.dataclass
class Burst:
    """What is known of some decode steps in a row.

    Attributes:
        begin: clock when the host started them, in seconds.
        steps: their number; None if they were not profiled.
        kernels: device milliseconds by kernel name; None if they were not profiled.
    """

    begin: float
    steps: int | None = None
    kernels: dict[str, float] | None = None


class BenchEngine(Engine):
    """Measures bursts of decode steps; everything else is the engine's own.

    Nothing is kept from call to call, so that each does the same.

    Attributes:
        runner: what measures.
    """

    runner: "BenchRunner"

    def __init__(
        self, model, tokenizer, *, programs: Programs | None = None, **options: Any
    ) -> None:
        """Set the engine up.

        Args:
            model: the network.
            tokenizer: the model's tokenizer.
            programs: compiled steps of engines with this model.
            options: keyword arguments for `Engine`.
        """
        self._programs = programs or Programs()
        super().__init__(model, tokenizer, prefix_cache=False, **options)

    def _create_runner(self, model) -> "BenchRunner":
        return BenchRunner(model, self.method, self._programs)


class BenchRunner(Runner):
    """Compiles ahead of time, reads the clock and, where wanted, records kernels.

    Attributes:
        bursts: the bursts since the caller last emptied the list.
        record: profiles every second burst, cut to a single step; None profiles none.
    """

    def __init__(self, model, method, programs: Programs) -> None:
        super().__init__(model, method)
        self.bursts: list[Burst] = []
        self.record: Record | None = None
        self._programs = programs
        self._used: dict[Hashable, Any] = {}

    def feed(self, chunk: Chunk, question: Question | None = None) -> Report:
        """Feed a chunk of prompts."""
        num_tokens = len(chunk.token)
        if question is None and feed_step(num_tokens, False) not in self._used:
            self.start_feed(self._rooms, num_tokens)
        return super().feed(chunk, question)

    def decode(
        self, table: RequestTable, turn: Turn, planner: Planner, width: int
    ) -> Report:
        """Run up to `turn.max_steps` steps, fewer while profiling."""
        if decode_step_of(planner, width) not in self._used:
            self.start_decode(self._rooms, table, planner, width)
        run = super().decode
        if not turn.max_steps:
            return run(table, turn, planner, width)
        # The first burst of a call ends its prompt.
        recorded = self.record is not None and len(self.bursts) % 2 == 1
        if self.record is not None:
            most = np.int32(1 if recorded else STEPS_BETWEEN)
            turn = dataclasses.replace(turn, max_steps=min(turn.max_steps, most))
        burst = Burst(time.perf_counter())
        self.bursts.append(burst)
        if not recorded or self.record is None:
            return run(table, turn, planner, width)
        # The burst before may still be running.
        jax.block_until_ready(self.state)
        return _profile(burst, self.record, lambda: run(table, turn, planner, width))

    def programs(self) -> list[Any]:
        """Return the compiled steps that have run."""
        return list(self._used.values())

    def decode_program(self, planner: Planner) -> Any:
        """Return the compiled decode loop of a planner that has run with all rows."""
        return self._used[decode_step_of(planner, self._rooms.rows)]

    @property
    def _rooms(self) -> Capacity:
        """The capacity, which there is once something runs."""
        assert self.capacity is not None
        return self.capacity

    def _start(self, key: Any, jitted, arguments, static) -> None:
        """Compile a step now, or take it from another engine of the model."""
        capacity, step, _ = key
        program = self._programs.get(
            capacity,
            (self.method, step),
            lambda: jitted.lower(*arguments, **static).compile(),
        )
        self._used[step] = program
        self.ahead.start(key, lambda: program)


def _profile(burst: Burst, record: Record, call: Callable[[], Report]) -> Report:
    """Run a burst and write down the kernels that it started."""
    reports: list[Report] = []

    def run() -> jax.Array:
        reports.append(call())
        return reports[0].numbers

    burst.kernels = {}
    for name, ms in record(run):
        burst.kernels[name] = burst.kernels.get(name, 0.0) + ms
    burst.steps = int(reports[0].numbers[0])
    return reports[0]


def peak_bytes(programs: Iterable[Any]) -> int | None:
    """Return the device memory of the largest of some programs, as XLA counts it.

    Arguments, results and temporaries; None where the compiler does not say.
    """
    known = [program.memory_analysis() for program in programs]
    return max((_bytes(memory) for memory in known if memory is not None), default=None)


def _bytes(memory) -> int:
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return kept + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def device_bytes() -> int | None:
    """Return the memory of the default device, None if it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
