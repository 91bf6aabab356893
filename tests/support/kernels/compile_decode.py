"""Compiles the decode loop of a replay for a GPU that need not be there.

    python -m tests.support.kernels.compile_decode REPLAY

A process of its own, so that the compiler can be told to write down what it makes.
"""

import dataclasses
import sys

import jax.numpy as jnp

from deft_jax.attention import device as device_module
from deft_jax.bench.decode.bench_engine import IdsOnly
from deft_jax.bench.trees.workload import few_shot_workloads, speculative_workloads
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import Runner, run_decode_on_gpu
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from deft_jax.runtime.state import Report, pack_numbers
from tests.support.kernels.compile_kernels import compile_jitted

HOPPER = (9, 0)
REPLAYS = {
    "few-shot": few_shot_workloads([500], [50], 100),
    "speculative": speculative_workloads([64], ["real"], 1200, 1016),
}


class CompilingRunner(Runner):
    """Compiles its first decode step for a GPU and goes no further."""

    def feed(self, chunk, question=None):
        """Read nothing; the prompts are somewhere."""
        roots = jnp.zeros_like(self.state.roots)
        self._state = dataclasses.replace(self.state, roots=roots)
        return Report(pack_numbers(self.state))

    def decode(self, table, turn, planner, width):
        """Compile the step.

        Raises:
            SystemExit: it is done.
        """
        planner_state = self.planner_state(planner)
        state = dataclasses.replace(self.state, planner=planner_state)
        arrays = self.model, state, table, turn
        static = {"planner": planner, "method": self.method, "width": width}
        compile_jitted(HOPPER, run_decode_on_gpu, *arrays, **static)
        raise SystemExit(0)


class CompilingEngine(Engine):
    """Feeds and decodes nothing."""

    def _create_runner(self, model):
        return CompilingRunner(model, self.method)


if __name__ == "__main__":
    device_module.compute_capability = lambda device=None: HOPPER
    [replay] = REPLAYS[sys.argv[1]]
    shape = dataclasses.replace(SHAPES["llama3_8b"], num_layers=1, hidden_size=1024)
    engine = CompilingEngine(
        Llama.random(shape, seed=0, dtype=jnp.bfloat16),
        IdsOnly(),
        capacity=replay.capacity(64),
        implementation="mosaic_gpu",
        prefix_cache=False,
    )
    prompt = [1] * replay.template.prompt_tokens
    engine.generate([prompt], replay.strategy, replay.strategy.sampling)
