"""The decode state and the compiled programs that change it."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from deft_jax.capacity import Capacity
from deft_jax.engine.device_memory import check_memory, has_memory
from deft_jax.engine.kept_programs import (
    can_keep,
    compile_to_keep,
    kept_path,
    read_program,
    renamed,
)
from deft_jax.engine.programs import Programs, never_stop
from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.runtime.forward import Model
from deft_jax.runtime.prefill import prefill
from deft_jax.runtime.state import LOG_STEPS, Chunk, DecodeState
from deft_jax.runtime.step import decode
from deft_jax.runtime.top_log import TopLog
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Planner

GPU_OPTIONS = {
    # The loop over steps and all in it is one command buffer (CUDA graph): the host
    # starts a burst of steps and is free.
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    # The library's products of few rows read weights faster.
    "xla_gpu_enable_triton_gemm": False,
}
"""Options of XLA for the decode loop on GPUs.

They are chosen for speed. The second one picks other matrix products, which round
differently: near ties, a token may differ from what the same model gives elsewhere.
"""

PREFILL = "prefill"
"""Key of the step that reads prompts; a decode step is known by its planner."""

_PREFILL: dict[str, Any] = {"static_argnames": "method", "donate_argnames": "state"}
run_prefill = jax.jit(prefill, **_PREFILL)

_DECODE: dict[str, Any] = {
    "static_argnames": ("planner", "method"),
    "donate_argnames": "state",
}
run_decode = jax.jit(decode, **_DECODE)
run_decode_on_gpu = jax.jit(decode, **_DECODE, compiler_options=GPU_OPTIONS)


def decode_program():
    """Return the jitted `decode` for the default device."""
    return run_decode_on_gpu if jax.default_backend() == "gpu" else run_decode


class Runner:
    """Owns the decode state and runs the programs that change it, and nothing else.

    Attributes:
        model: the network.
        method: stores KV and attends.
        capacity: sizes of the state; None before the first call of `prepare`.
        ahead: the programs that are compiled ahead of time.
        should_stop: asked while a step waits for its program to be compiled; true makes
            the step raise `StopRequested` and leave the state as it is.
    """

    log_steps = LOG_STEPS
    """Most decode steps between two looks of the host."""

    def __init__(self, model: Model, method: AttentionMethod):
        self.model = model
        self.method = method
        self.capacity: Capacity | None = None
        self.ahead = Programs()
        self.should_stop: Callable[[], bool] = never_stop
        self._state: DecodeState | None = None
        self._made: set[Hashable] = set()

    @property
    def state(self) -> DecodeState:
        """The decode state on the device."""
        assert self._state is not None
        return self._state

    def prepare(self, capacity: Capacity, planner: Planner) -> None:
        """Make the state have a capacity, and the planner's part of it new.

        Raises:
            CapacityError: the device has too little memory for a new state.
        """
        if capacity != self.capacity:
            self.reset()
        self.capacity = capacity
        if self._state is None:
            self.check(capacity)
            self._state = self.create_state(capacity)
        # Donated with the state, so that no array may be there twice or be kept.
        planner_state = jax.tree.map(
            lambda array: jnp.array(array, copy=True), planner.init(capacity)
        )
        self._state = dataclasses.replace(self._state, planner=planner_state)

    def replace_model(self, model: Model) -> None:
        """Take another network; one of other shapes needs other programs and state."""
        if _shapes(model) != _shapes(self.model):
            self.reset()
            self.ahead, self._made = Programs(), set()
        self.model = model

    def check(self, capacity: Capacity) -> None:
        """Check that the device has the memory for a new state of a capacity.

        Raises:
            CapacityError: it has not; the message gives the numbers.
        """
        config, dtype = self.model.config, self.model.dtype
        check_memory(config, dtype, capacity, self._to_come())

    def fits(self, capacity: Capacity) -> bool:
        """Say whether the device has the memory for a new state of a capacity."""
        config, dtype = self.model.config, self.model.dtype
        return has_memory(config, dtype, capacity, self._to_come())

    def _to_come(self) -> int:
        """Return the bytes of weights that are still to be loaded."""
        weights = jax.tree.leaves(self.model)
        shapes = [x for x in weights if isinstance(x, jax.ShapeDtypeStruct)]
        return sum(x.size * x.dtype.itemsize for x in shapes)

    def create_state(self, capacity: Capacity) -> DecodeState:
        """Return a state without a request."""
        config, dtype = self.model.config, self.model.dtype
        pool = self.method.create_pool(config, capacity, dtype)
        return DecodeState.create(capacity, pool, config.hidden_size, dtype)

    def reset(self) -> None:
        """Drop the state, whatever it holds; `prepare` makes an empty one."""
        self._state = None

    def prefill(self, chunk: Chunk) -> DecodeState:
        """Feed a chunk of prompts; return the new state.

        What only decoding needs stays outside, so that all of it shares a compilation.

        Raises:
            StopRequested: `should_stop` said so before the step was compiled.
        """
        outside = {"planner": self.state.planner, "top_log": self.state.top_log}
        inside = dataclasses.replace(self.state, planner=(), top_log=())
        args = self.model, inside, chunk
        ahead = self.ahead.get(self._key(PREFILL), self.should_stop)
        state: DecodeState = (
            ahead(*args) if ahead else run_prefill(*args, method=self.method)
        )
        self._state = dataclasses.replace(state, **outside)
        return self._state

    def decode(
        self, table: RequestTable, dropped: np.ndarray, max_steps: int, planner: Planner
    ) -> DecodeState:
        """Run up to `max_steps` steps; return the new state with their log.

        Args:
            table: sampling, limits and ends of the requests.
            dropped: [N] bool, nodes to drop before the first step, with all below.
            max_steps: at most `log_steps`.
            planner: what decides on the device.

        Raises:
            StopRequested: `should_stop` said so before the step was compiled.
        """
        state = with_top_log(self.state, table.num_top)
        args = self.model, state, table, jnp.asarray(dropped), jnp.int32(max_steps)
        ahead = self.ahead.get(self._key(planner, table), self.should_stop)
        static = {"planner": planner, "method": self.method}
        self._state = ahead(*args) if ahead else decode_program()(*args, **static)
        return self.state

    def compile_ahead(
        self, capacity: Capacity, table: RequestTable, chunk: Chunk, planner: Planner
    ) -> None:
        """Begin to compile both steps on threads of their own; nothing is run.

        The arrays of the model may still be `jax.ShapeDtypeStruct`.

        Args:
            capacity: sizes of the state.
            table: any table of the shapes to come.
            chunk: any chunk of the shapes to come.
            planner: what decides on the device.
        """
        self.capacity = capacity
        state = jax.eval_shape(lambda: self.create_state(capacity))
        self._start(PREFILL, None, run_prefill, (self.model, state, chunk))
        planner_state = jax.eval_shape(lambda: planner.init(capacity))
        state = dataclasses.replace(state, planner=planner_state)
        state = jax.eval_shape(lambda: with_top_log(state, table.num_top))
        no_node = jnp.zeros(capacity.nodes, bool)
        arguments = self.model, state, table, no_node, jnp.int32(0)
        self._start(planner, table, decode_program(), arguments)

    def _start(
        self, step: Any, table: RequestTable | None, jitted: Any, arguments: tuple
    ) -> None:
        """Begin to make the program of a step: read what a file keeps, or compile.

        Args:
            step: PREFILL, or the planner of a decode step.
            table: the requests of a decode step.
            jitted: the step.
            arguments: arrays or shapes; the second is the state, which is returned.
        """
        static = {"method": self.method}
        if step != PREFILL:
            static["planner"] = step
        name, options = (PREFILL, _PREFILL) if step == PREFILL else ("decode", _DECODE)
        state = arguments[1]

        def make() -> Compiled:
            path = kept_path(name, tuple(static.values()), arguments)
            program = path and read_program(path, arguments, state)
            if program is not None:
                return program
            if path is None or not can_keep(path):
                return jitted.lower(*arguments, **static).compile()
            lowered = renamed(jitted, path, options).lower(*arguments, **static)
            return compile_to_keep(lowered, path, arguments, state)

        self.ahead.start(self._key(step, table), make)

    def _key(self, step: Hashable, table: RequestTable | None = None) -> Hashable:
        """Return what a program compiled ahead is known by: all it depends on."""
        return self.capacity, step, table and _shapes(table)

    def note_made(self, step: Hashable, table: RequestTable | None = None) -> None:
        """Note that a step was run; the arguments are those of `has_made`."""
        self._made.add(self._key(step, table))

    def has_made(self, step: Hashable, table: RequestTable | None = None) -> bool:
        """Say whether the program of a step was run for the present capacity.

        Args:
            step: PREFILL, or the planner of a decode step.
            table: the requests of a decode step.
        """
        return self._key(step, table) in self._made


def with_top_log(state: DecodeState, num_top: int) -> DecodeState:
    """Return a state that has a log of so many likely tokens, or as it is if it has."""
    if TopLog.num_top(state.top_log) == num_top:
        return state
    steps, _, num_rows = state.log.shape
    return dataclasses.replace(state, top_log=TopLog.create(steps, num_rows, num_top))


def _shapes(argument: Model | RequestTable) -> Hashable:
    """Return what programs depend on of an argument: structure, shapes and dtypes."""
    leaves, tree = jax.tree.flatten(argument)
    return tree, tuple((x.shape, x.dtype) for x in leaves)
