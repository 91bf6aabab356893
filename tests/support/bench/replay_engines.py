"""Engines for tests of the replays: short of pages or nodes, or watched."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner
from deft_jax.runtime.state import DecodeState, Numbers, Report, StepLog
from deft_jax.tree.state import replace
from tests.support.tiny_model import AsciiTokenizer, tiny_model

BURST_STEPS = 4
"""Steps of a watched burst behind the first, which has one."""


class ReplayEngine(Engine):
    """Decodes replays with the tiny model; no page is kept behind them."""

    def __init__(self, capacity: Capacity):
        super().__init__(
            tiny_model(), AsciiTokenizer(), capacity=capacity, prefix_cache=False
        )


class TightEngine(ReplayEngine):
    """Fewer free pages and nodes than its capacity, which compiles nothing new."""

    def __init__(self, capacity: Capacity, *, pages: int, nodes: int):
        self._free = {"num_free_pages": pages, "num_free_nodes": nodes}
        super().__init__(capacity)

    def _create_runner(self, model) -> Runner:
        runner = TightRunner(model, self.method)
        runner.free = self._free
        return runner


class TightRunner(Runner):
    """Takes pages and nodes away from every new state."""

    free: dict[str, int]

    def create_state(self, capacity: Capacity) -> DecodeState:
        state = super().create_state(capacity)
        free = {name: jnp.int32(count) for name, count in self.free.items()}
        return dataclasses.replace(state, tree=replace(state.tree, **free))


class WatchedEngine(ReplayEngine):
    """Keeps a copy of the state after each prefill and each burst of decode steps."""

    runner: "WatchedRunner"

    def _create_runner(self, model) -> Runner:
        return WatchedRunner(model, self.method)


class WatchedBurst(NamedTuple):
    """What a burst of decode steps has left.

    Attributes:
        state: the state behind it.
        planner: the planner's part of it.
        steps: how many steps it had.
        log: those steps.
    """

    state: DecodeState
    planner: Any
    steps: int
    log: StepLog


class WatchedRunner(Runner):
    """Keeps copies of its states; its bursts have as many steps on any machine."""

    def __init__(self, model, method):
        super().__init__(model, method)
        self.prefills: list[DecodeState] = []
        self.bursts: list[WatchedBurst] = []

    def feed(self, chunk, question=None) -> Report:
        report = super().feed(chunk, question)
        self.prefills.append(jax.device_get(self.state))
        return report

    def decode(self, table, turn, planner, width) -> Report:
        if not turn.max_steps:
            return super().decode(table, turn, planner, width)
        most = np.int32(BURST_STEPS if self.bursts else 1)
        turn = dataclasses.replace(turn, max_steps=most)
        report = super().decode(table, turn, planner, width)
        packed = np.asarray(report.numbers)
        steps = Numbers.unpack(packed, len(turn.requests)).steps
        log = StepLog.unpack(np.asarray(report.log)[:steps])
        state, planner_state = jax.device_get(
            (self.state, self.planner_state(planner).own)
        )
        self.bursts.append(WatchedBurst(state, planner_state, steps, log))
        return report
