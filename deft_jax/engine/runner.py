"""The decode state and the compiled programs that change it."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from deft_jax.capacity import Capacity
from deft_jax.engine.device_memory import (
    check_memory,
    has_memory,
    kv_pool_bytes,
    spare_bytes,
)
from deft_jax.engine.kept_programs import (
    can_keep,
    compile_to_keep,
    kept_path,
    read_program,
    renamed,
)
from deft_jax.engine.programs import Programs, never_stop
from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.runtime.edit import edit
from deft_jax.runtime.forward import Model
from deft_jax.runtime.node_carry import PlannerState
from deft_jax.runtime.prefill import prefill
from deft_jax.runtime.state import (
    NOTHING,
    Chunk,
    DecodeState,
    Edit,
    Question,
    Report,
    Turn,
)
from deft_jax.runtime.step import decode
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Planner
from deft_jax.strategies.traits import may_wait

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
"""Name of the step that feeds tokens."""

_PREFILL: dict[str, Any] = {"static_argnames": "method", "donate_argnames": "state"}
run_prefill = jax.jit(prefill, **_PREFILL)

_DECODE: dict[str, Any] = {
    "static_argnames": ("planner", "method", "width"),
    "donate_argnames": "state",
}
run_decode = jax.jit(decode, **_DECODE)
run_decode_on_gpu = jax.jit(decode, **_DECODE, compiler_options=GPU_OPTIONS)

run_edit = jax.jit(edit, donate_argnames="state")


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

    def __init__(self, model: Model, method: AttentionMethod):
        self.model = model
        self.method = method
        self.capacity: Capacity | None = None
        self.ahead = Programs()
        self.should_stop: Callable[[], bool] = never_stop
        self._state: DecodeState | None = None
        self._planner_states: dict[Planner, PlannerState] = {}
        self._made: set[Hashable] = set()

    @property
    def state(self) -> DecodeState:
        """The decode state on the device."""
        assert self._state is not None
        return self._state

    @property
    def has_state(self) -> bool:
        """True if there is a state on the device."""
        return self._state is not None

    def prepare(self, capacity: Capacity) -> None:
        """Make the state have a capacity; a state of another one is dropped first.

        Raises:
            CapacityError: the device has too little memory for a new state.
        """
        if capacity != self.capacity:
            self.reset()
        self.capacity = capacity
        if self._state is None:
            self.check(capacity)
            self._state = self.create_state(capacity)

    def start_planner(self, planner: Planner, others: Iterable[Planner] = ()) -> None:
        """Make a planner's part of the state new.

        Args:
            planner: what decides on the device.
            others: planners that have requests; the parts of all others are dropped.
        """
        assert self.capacity is not None
        states = self._planner_states
        self._planner_states = {other: states[other] for other in others}
        # Donated with the state, so that no array may be there twice or be kept.
        self._planner_states[planner] = jax.tree.map(
            lambda array: jnp.array(array, copy=True),
            PlannerState.create(planner, self.capacity),
        )

    def planner_state(self, planner: Planner) -> PlannerState:
        """Return a planner's part of the state, on the device."""
        return self._planner_states[planner]

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
        check_memory(config, dtype, capacity, self._reserved())

    def fits(self, capacity: Capacity) -> bool:
        """Say whether the device has the memory for a new state of a capacity."""
        config, dtype = self.model.config, self.model.dtype
        return has_memory(config, dtype, capacity, self._reserved())

    def page_bytes(self, capacity: Capacity) -> int:
        """Return the bytes of a page's keys and values in all layers."""
        pool = kv_pool_bytes(self.model.config, self.model.dtype, capacity)
        return pool // capacity.pages

    def free_bytes(self) -> int:
        """Return the memory that the device has free, 0 if it does not say."""
        return spare_bytes(self._reserved())

    def _reserved(self) -> int:
        """Return the bytes that are free and will be taken, less those to be freed.

        Weights may still have to be loaded, and a new state takes the old one's place.
        """
        arrays = jax.tree.leaves((self._state, list(self._planner_states.values())))
        return self._to_come() - sum(array.nbytes for array in arrays)

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
        self._planner_states.clear()

    def feed(self, chunk: Chunk, question: Question | None = None) -> Report:
        """Feed a chunk of tokens; return what there is to know of it.

        Raises:
            StopRequested: `should_stop` said so before the step was compiled.
        """
        args = self.model, self.state, chunk, question
        step = feed_step(len(chunk.token), question is not None)
        ahead = self.ahead.get(self._key(step), self.should_stop)
        program = ahead or partial(run_prefill, method=self.method)
        self._state, report = program(*args)
        return report

    def decode(
        self, table: RequestTable, turn: Turn, planner: Planner, width: int
    ) -> Report:
        """Run up to `turn.max_steps` steps; return what there is to know of them.

        Args:
            table: sampling, limits and ends of the requests.
            turn: which requests decode, and how far.
            planner: what decides on the device.
            width: rows that take part.

        Raises:
            StopRequested: `should_stop` said so before the step was compiled.
        """
        state = dataclasses.replace(self.state, planner=self._planner_states[planner])
        args = self.model, state, table, turn
        step = decode_step_of(planner, width)
        ahead = self.ahead.get(self._key(step, table), self.should_stop)
        static = {"planner": planner, "method": self.method, "width": width}
        program = ahead or partial(decode_program(), **static)
        state, report = program(*args)
        self._planner_states[planner] = state.planner
        self._state = dataclasses.replace(state, planner=())
        return report

    def edit(self, changes: Edit) -> Report:
        """Change the forest; return what there is to know of it."""
        self._state, report = run_edit(self.state, changes)
        return report

    def compile_ahead(
        self,
        capacity: Capacity,
        table: RequestTable,
        planner: Planner,
        width: int,
        num_tokens: int,
    ) -> None:
        """Begin to compile both steps on threads of their own; nothing is run.

        The arrays of the model may still be `jax.ShapeDtypeStruct`.

        Args:
            capacity: sizes of the state.
            table: any table of the shapes to come.
            planner: what decides on the device.
            width: rows of the decode step.
            num_tokens: tokens of the chunks.
        """
        self.start_feed(capacity, num_tokens)
        self.start_decode(capacity, table, planner, width)

    def start_feed(self, capacity: Capacity, num_tokens: int) -> None:
        """Begin to make the program that feeds chunks of so many tokens."""
        state = jax.eval_shape(lambda: self.create_state(capacity))
        args = self.model, state, empty_chunk(capacity, num_tokens), None
        key = _program_key(capacity, feed_step(num_tokens, False))
        self._start(key, run_prefill, args, {"method": self.method})

    def start_decode(
        self, capacity: Capacity, table: RequestTable, planner: Planner, width: int
    ) -> None:
        """Begin to make the decode program of a planner for so many rows."""
        state, planner_state = jax.eval_shape(
            lambda: (
                self.create_state(capacity),
                PlannerState.create(planner, capacity),
            )
        )
        state = dataclasses.replace(state, planner=planner_state)
        args = self.model, state, table, no_turn(capacity, planner)
        static = {"planner": planner, "method": self.method, "width": width}
        key = _program_key(capacity, decode_step_of(planner, width), table)
        self._start(key, decode_program(), args, static)

    def _start(
        self, key: Hashable, jitted: Any, arguments: tuple, static: dict[str, Any]
    ) -> None:
        """Begin to make the program of a step: read what a file keeps, or compile.

        Args:
            key: what the program is known by.
            jitted: the step.
            arguments: arrays or shapes; the second is the state.
            static: its static arguments.
        """
        is_feed = jitted is run_prefill
        name, options = (PREFILL, _PREFILL) if is_feed else ("decode", _DECODE)
        # Nothing is traced: of the result the structure alone is needed.
        report: Any = Report
        if is_feed:
            result = arguments[1], report(0)
        else:
            result = arguments[1], report(0, 0, 0 if arguments[2].num_top else ())

        def make() -> Compiled:
            path = kept_path(name, tuple(static.values()), arguments)
            program = path and read_program(path, arguments, result)
            if program is not None:
                return program
            if path is None or not can_keep(path):
                return jitted.lower(*arguments, **static).compile()
            lowered = renamed(jitted, path, options).lower(*arguments, **static)
            return compile_to_keep(lowered, path, arguments, result)

        self.ahead.start(key, make)

    def _key(self, step: Hashable, table: RequestTable | None = None) -> Hashable:
        """Return what a program for the present capacity is known by."""
        return _program_key(self.capacity, step, table)

    def note_made(self, step: Hashable, table: RequestTable | None = None) -> None:
        """Note that a step was run; the arguments are those of `has_made`."""
        self._made.add(self._key(step, table))

    def has_made(self, step: Hashable, table: RequestTable | None = None) -> bool:
        """Say whether a step can run at once for the present capacity.

        Args:
            step: what `feed_step` or `decode_step_of` gives.
            table: the requests of a decode step.
        """
        key = self._key(step, table)
        return key in self._made or self.ahead.has(key)

    def is_being_made(self, step: Hashable, table: RequestTable | None = None) -> bool:
        """Say whether the program of a step was begun."""
        return self.ahead.is_begun(self._key(step, table))


def feed_step(num_tokens: int, asks: bool) -> Hashable:
    """Return what names the step that feeds chunks of so many tokens."""
    return PREFILL, num_tokens, asks


def decode_step_of(planner: Planner, width: int) -> Hashable:
    """Return what names the decode step of a planner for so many rows."""
    return planner, width


def no_turn(capacity: Capacity, planner: Planner) -> Turn:
    """Return the turn in which no request decodes, and all stay as they are."""
    none = np.zeros(capacity.requests, bool)
    scores = no_scores(capacity) if may_wait(planner) else None
    return Turn(none, ~none, none, np.int32(0), scores)


def no_scores(capacity: Capacity) -> np.ndarray:
    """Return `Turn.scores` that tell nothing, [N] float32."""
    return np.full(capacity.nodes, np.nan, np.float32)


def empty_chunk(capacity: Capacity, num_tokens: int) -> Chunk:
    """Return a chunk that feeds nothing."""
    requests, rows = capacity.requests, capacity.rows
    return Chunk(
        token=np.zeros(num_tokens, np.int32),
        node=np.full(num_tokens, -1, np.int32),
        request=np.full(num_tokens, requests, np.int32),
        starts=np.zeros(requests, bool),
        prefix=np.full(requests, NOTHING, np.int32),
        root=np.full(requests, NOTHING, np.int32),
        key=np.zeros(requests, np.uint32),
        last=np.full(rows, -1, np.int32),
        number=np.zeros(rows, np.int32),
    )


def empty_edit(capacity: Capacity) -> Edit:
    """Return an edit that changes nothing."""
    none = np.zeros(capacity.nodes, bool)
    return Edit(
        dropped=none,
        rest=none.copy(),
        released=none.copy(),
        split=np.full(capacity.requests, -1, np.int32),
        at=np.zeros(capacity.requests, np.int32),
        row=np.arange(capacity.rows, dtype=np.int32),
    )


def _program_key(
    capacity: Capacity | None, step: Hashable, table: RequestTable | None = None
) -> Hashable:
    """Return what a program is known by: all it depends on."""
    return capacity, step, table and _shapes(table)


def _shapes(argument: Model | RequestTable) -> Hashable:
    """Return what programs depend on of an argument: structure, shapes and dtypes."""
    leaves, tree = jax.tree.flatten(argument)
    return tree, tuple((x.shape, x.dtype) for x in leaves)
