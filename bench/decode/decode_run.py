"""One run of the decode benchmark: a workload, a method, every number of a report."""

import time
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np

from deft_jax.accounting.methods import Method
from deft_jax.errors import CapacityError, DeftError
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree

from ..methods.choice import make_method
from ..trees.workload import Workload
from .bench_engine import BenchEngine, device_bytes, peak_bytes
from .components import COMPONENTS, OTHER, split, unknown
from .setting import Setting
from .step_account import account, implementation

WARM_BURSTS = 1
"""Bursts of the call that compiles: a single step, and what ends the call."""

MOST_KERNELS = 40
"""Kernels that a row names, those that take longest."""

PARTS = tuple(dict.fromkeys([*COMPONENTS.values(), OTHER]))
PROFILED = (*PARTS, "kernel_ms", "profiled_steps", "kernels", "library_kernels")
"""Numbers of a row that are None where nothing was profiled."""

FAILURES = (DeftError, MemoryError, NotImplementedError, jax.errors.JaxRuntimeError)
"""What ends a run but not a report."""

MOST_LETTERS = 300
"""Of a failure's message; compilers write pages."""


def run(workload: Workload, method: Method, setting: Setting, *, profile: bool) -> dict:
    """Measure a workload with a method; a failure is a row that says why.

    Args:
        workload: the tree.
        method: name that `make_method` knows.
        setting: the model and its surroundings.
        profile: whether the call is repeated with kernels recorded, for the parts of a
            step.
    """
    row = {
        "workload": workload.kind,
        "parameters": workload.parameters,
        "method": method,
        "implementation": setting.implementation,
    }
    try:
        row["implementation"] = implementation(workload, method, setting)
        return row | _measured(workload, method, setting, profile)
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return row | {"error": reason[:MOST_LETTERS]}


def make_engine(workload: Workload, method: Method, setting: Setting) -> BenchEngine:
    """Return an engine that fits the workload and the method.

    Raises:
        DeftError: the method cannot decode the workload.
        MemoryError: weights and KV are more than the device has.
    """
    capacity = workload.capacity(setting.page_size)
    chosen = make_method(
        method,
        setting.implementation,
        path_tokens=workload.longest_path,
        draft_depth=workload.strategy.planner.draft_depth,
    )
    config, dtype = setting.model.config, setting.model.dtype
    pool = jax.eval_shape(lambda: chosen.create_pool(config, capacity, dtype))
    arrays = jax.tree.leaves((setting.model, pool))
    needed = sum(x.size * x.dtype.itemsize for x in arrays)
    most = device_bytes()
    if most is not None and needed > most:
        raise MemoryError(
            f"out of memory: weights and KV need {needed / 1e9:.0f} GB of "
            f"{most / 1e9:.0f} GB"
        )
    return BenchEngine(
        setting.model,
        setting.tokenizer,
        capacity=capacity,
        implementation=chosen,
        programs=setting.programs,
    )


def _measured(
    workload: Workload, method: Method, setting: Setting, profile: bool
) -> dict:
    engine = make_engine(workload, method, setting)
    prompt = _prompt(workload, setting)
    _generate(engine, workload, prompt, bursts=WARM_BURSTS)
    times = _timed(engine, workload, prompt)
    parts = {}
    if profile and setting.record is not None:
        engine.runner.record = setting.record
        _generate(engine, workload, prompt)
        parts = _parts(engine, workload)
    known = account(workload, method, setting)
    fraction = known["roofline_ms"] / times["step_ms"]
    return (
        {"steps": workload.template.steps}
        | times
        | dict.fromkeys(PROFILED)
        | parts
        | known
        | {
            "roofline_fraction": round(fraction, 4),
            "peak_bytes": peak_bytes(engine.runner.programs()),
        }
    )


def _prompt(workload: Workload, setting: Setting) -> list[int]:
    draw = np.random.default_rng(setting.seed)
    vocab_size = setting.model.config.vocab_size
    return draw.integers(0, vocab_size, workload.template.prompt_tokens).tolist()


def _generate(
    engine: BenchEngine,
    workload: Workload,
    prompt: list[int],
    *,
    bursts: int | None = None,
    on_status: Callable[[Status], None] | None = None,
) -> GenerationTree:
    """Decode the tree, or its first bursts only.

    Raises:
        CapacityError: pages or nodes ran out.
    """
    engine.runner.bursts = []
    strategy = workload.strategy
    stop = None if bursts is None else lambda: len(engine.runner.bursts) > bursts
    [tree] = engine.generate(
        [prompt], strategy, strategy.sampling, on_status=on_status, should_stop=stop
    )
    if tree.notice:
        raise CapacityError(tree.notice)
    return tree


def _timed(engine: BenchEngine, workload: Workload, prompt: list[int]) -> dict:
    """Measure the wall times of a call that compiles and profiles nothing."""
    decoded: list[float] = []

    def on_status(status: Status) -> None:
        if status.phase == "decode":
            decoded.append(time.perf_counter())

    begin = time.perf_counter()
    tree = _generate(engine, workload, prompt, on_status=on_status)
    end = time.perf_counter()
    decode_s = decoded[-1] - engine.runner.bursts[0].begin
    tokens, steps = workload.output_tokens, workload.template.steps
    return {
        "step_ms": round(decode_s / steps * 1e3, 4),
        "ttft_ms": round((decoded[0] - begin) * 1e3, 2),
        "prefill_ms": round(tree.prefill_s * 1e3, 2),
        "decode_s": round(decode_s, 4),
        "end_to_end_s": round(end - begin, 4),
        "time_per_output_token_ms": round(decode_s / tokens * 1e3, 5),
        "tokens_per_s": round(tokens / decode_s, 1),
    }


def _parts(engine: BenchEngine, workload: Workload) -> dict:
    """Return the device times of a step's parts, means over the profiled steps.

    There are none where the call was too short for a burst that is profiled.
    """
    total: Counter[str] = Counter()
    steps = 0
    for burst in engine.runner.bursts:
        total.update(burst.kernels or {})
        steps += burst.steps or 0
    if not steps:
        return {}
    kernels = {name: ms / steps for name, ms in total.most_common()}
    text = engine.runner.decode_program(workload.strategy.planner).as_text()
    parts = split(kernels, text)
    longest = list(kernels.items())[:MOST_KERNELS]
    return {name: round(parts.get(name, 0.0), 5) for name in PARTS} | {
        "kernel_ms": round(sum(kernels.values()), 4),
        "profiled_steps": steps,
        "kernels": {name: round(ms, 5) for name, ms in longest},
        "library_kernels": unknown(kernels, text),
    }
