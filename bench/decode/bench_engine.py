"""An engine whose runner has programs compiled ahead of time, clock and profiler."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import (
    Runner,
    decode_program,
    run_prefill,
    with_top_log,
)
from deft_jax.runtime.state import Chunk, DecodeState
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
        super().__init__(model, tokenizer, **options)
        self.runner = BenchRunner(model, self.method, programs or Programs())


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

    def prefill(self, chunk: Chunk) -> DecodeState:
        """Feed a chunk of prompts; return the new state."""
        outside = {"planner": self.state.planner, "top_log": self.state.top_log}
        inside = dataclasses.replace(self.state, planner=(), top_log=())
        args = self.model, inside, chunk
        program = self._program("prefill", run_prefill, args, method=self.method)
        self._state = dataclasses.replace(program(*args), **outside)
        return self.state

    def decode(
        self, table: RequestTable, dropped: np.ndarray, max_steps: int, planner: Planner
    ) -> DecodeState:
        """Run up to `max_steps` steps, fewer while profiling; return the new state."""
        # The first burst of a call ends its prompt.
        recorded = self.record is not None and len(self.bursts) % 2 == 1
        if self.record is not None:
            max_steps = min(max_steps, 1 if recorded else STEPS_BETWEEN)
        state = with_top_log(self.state, table.num_top)
        args = self.model, state, table, dropped, jnp.int32(max_steps)
        static = {"planner": planner, "method": self.method}
        program = self._program(planner, decode_program(), args, **static)
        burst = Burst(time.perf_counter())
        if recorded and self.record is not None:
            self._state = _profile(burst, self.record, lambda: program(*args))
        else:
            self._state = program(*args)
        self.bursts.append(burst)
        return self.state

    def programs(self) -> list[Any]:
        """Return the compiled steps that have run."""
        return list(self._used.values())

    def decode_program(self, planner: Planner) -> Any:
        """Return the compiled decode loop of a planner that has run."""
        return self._used[planner]

    def _program(self, step: Hashable, jitted, args, **static):
        if step not in self._used:
            key = self.method, step
            self._used[step] = self._programs.get(
                self.capacity, key, lambda: jitted.lower(*args, **static).compile()
            )
        return self._used[step]


def _profile(
    burst: Burst, record: Record, call: Callable[[], DecodeState]
) -> DecodeState:
    """Run a burst and write down the kernels that it started."""
    states: list[DecodeState] = []

    def run() -> jax.Array:
        states.append(call())
        return states[0].step

    burst.kernels = {}
    for name, ms in record(run):
        burst.kernels[name] = burst.kernels.get(name, 0.0) + ms
    burst.steps = int(states[0].step)
    return states[0]


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
