"""Engines for tests of the replays: short of pages or nodes, or watched."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner
from deft_jax.runtime.state import DecodeState
from deft_jax.strategies.protocol import Planner
from deft_jax.tree.state import replace
from tests.support.tiny_model import AsciiTokenizer, tiny_model


class TightEngine(Engine):
    """Fewer free pages and nodes than its capacity, which compiles nothing new."""

    def __init__(self, capacity: Capacity, *, pages: int, nodes: int):
        self._free = {"num_free_pages": pages, "num_free_nodes": nodes}
        super().__init__(
            tiny_model(), AsciiTokenizer(), capacity=capacity, prefix_cache=False
        )

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


class WatchedEngine(Engine):
    """Keeps a copy of the state after each prefill and each burst of decode steps."""

    runner: "WatchedRunner"

    def __init__(self, capacity: Capacity):
        super().__init__(
            tiny_model(), AsciiTokenizer(), capacity=capacity, prefix_cache=False
        )

    def _create_runner(self, model) -> Runner:
        return WatchedRunner(model, self.method)


class WatchedRunner(Runner):
    """Keeps copies of its states."""

    def __init__(self, model, method):
        super().__init__(model, method)
        self.prefills: list[DecodeState] = []
        self.bursts: list[DecodeState] = []

    def prefill(self, chunk) -> DecodeState:
        state = super().prefill(chunk)
        self.prefills.append(jax.device_get(state))
        return state

    def decode(self, table, dropped, max_steps: int, planner: Planner) -> DecodeState:
        state = super().decode(table, dropped, max_steps, planner)
        self.bursts.append(jax.device_get(state))
        return state
