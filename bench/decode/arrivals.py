"""What requests that come and go cost each other: pauses, first tokens, streaming.

    python -m deft_jax.bench.decode.arrivals [--shape llama3_8b] [--output results.json]

Without a shape it is SmolLM2 in float32; with one, random weights in bfloat16. Every
number is the median of `--repeats` runs, the kinds of a comparison in turn, after two
behind which every program that they ask for is made:

* `prefix`: the first token of a 720-token prompt of which 700 tokens are cached, and of
  one of which nothing is;
* `together`: eight prompts that begin with the same 2000 tokens and are submitted at
  once;
* `arrival`: the longest pause of eight branches of one request while a prompt arrives,
  and the first token of that prompt beside them and alone;
* `streaming`: tokens per second of eight branches with a listener and without.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from deft_jax import BestOfN, Capacity, Engine, Sampling
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from deft_jax.models.load import load_model

from ..machine import machine_facts
from .bench_engine import IdsOnly

SHARED, NEW = 700, 20
LONG, SHORT = 4000, 64
BRANCHES, TOGETHER = 8, 8
STREAM_TOKENS = 128
GREEDY = Sampling(temperature=0.0, max_new_tokens=8, ignore_eos=True)


@dataclasses.dataclass
class Bench:
    """An engine with random prompts, none of which is another's beginning.

    Attributes:
        engine: what is measured.
        draw: source of the prompts.
    """

    engine: Engine
    draw: np.random.Generator

    def prompt(self, length: int) -> list[int]:
        """Return a prompt of random tokens."""
        vocab_size = self.engine.model.config.vocab_size
        return self.draw.integers(10, vocab_size, length).tolist()

    def first_token_s(self, prompt: list[int], sampling: Sampling = GREEDY) -> float:
        """Return the seconds until a prompt's first token."""
        times: list[float] = []
        begin = time.perf_counter()
        handle = self.engine.submit(
            prompt,
            sampling=sampling,
            on_token=lambda event: times.append(time.perf_counter()),
        )
        handle.result()
        return times[0] - begin

    def prefix(self) -> dict[str, float]:
        """Measure the first token of a prompt that was not seen, and of its like."""
        shared = self.prompt(SHARED)
        new = self.first_token_s(shared + self.prompt(NEW))
        return {"new_s": new, "cached_s": self.first_token_s(shared + self.prompt(NEW))}

    def together(self) -> dict[str, float]:
        """Measure prompts with one beginning that come at once."""
        shared = self.prompt(2000)
        prompts = [shared + self.prompt(NEW) for _ in range(TOGETHER)]
        before = self.engine.statistics()
        begin = time.perf_counter()
        handles = [self.engine.submit(p, sampling=GREEDY) for p in prompts]
        for handle in handles:
            handle.result()
        seconds = time.perf_counter() - begin
        after = self.engine.statistics()
        fed = after["prompt_tokens"] - before["prompt_tokens"]
        fed -= after["cached_tokens"] - before["cached_tokens"]
        return {
            "seconds": seconds,
            "fed_tokens": fed,
            "all_tokens": len(prompts) * 2020,
        }

    def arrival(self, length: int) -> dict[str, float]:
        """Measure a prompt that arrives while branches decode."""
        alone = self.first_token_s(self.prompt(length))
        times: list[float] = []
        running = self.engine.submit(
            self.prompt(SHORT),
            BestOfN(BRANCHES),
            Sampling(max_new_tokens=2000, ignore_eos=True, seed=1),
            on_token=lambda event: times.append(time.perf_counter()),
        )
        while len(times) < 20 * BRANCHES:
            time.sleep(0.001)
        begin = time.perf_counter()
        beside = self.first_token_s(self.prompt(length))
        end = time.perf_counter()
        time.sleep(0.2)
        running.cancel()
        running.result()
        during = [t for t in times if begin - 0.1 <= t <= end + 0.1]
        before = [t for t in times if t < begin]
        return {
            "alone_s": alone,
            "beside_s": beside,
            "longest_pause_ms": _longest_gap(during) * 1e3,
            "pause_without_ms": _longest_gap(before[BRANCHES:]) * 1e3,
        }

    def streaming(self, listens: bool) -> float:
        """Return the tokens per second of branches, with a listener or without."""
        sampling = Sampling(max_new_tokens=STREAM_TOKENS, ignore_eos=True, seed=2)
        told: list[Any] = []
        begin = time.perf_counter()
        self.engine.generate(
            [self.prompt(SHORT)],
            BestOfN(BRANCHES),
            sampling,
            on_token=told.append if listens else None,
        )
        return BRANCHES * STREAM_TOKENS / (time.perf_counter() - begin)

    def chunk_ms(self) -> float:
        """Return the milliseconds of a chunk of 256 tokens, from a prompt of many."""
        length = 8 * 256
        return self.first_token_s(self.prompt(length)) / 8 * 1e3


def _longest_gap(times: list[float]) -> float:
    return max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)


def medians(
    engine: Engine, run: Callable[[], dict[str, float]], repeats: int
) -> dict[str, float]:
    """Return the medians of several runs, after two that compile."""
    for _ in range(2):
        run()
        engine.runner.ahead.wait()
    runs = [run() for _ in range(repeats)]
    return {
        name: round(statistics.median(one[name] for one in runs), 4) for name in runs[0]
    }


def run(bench: Bench, repeats: int) -> dict[str, Any]:
    """Measure everything and return the report."""
    engine = bench.engine
    prefix = medians(engine, bench.prefix, repeats)
    prefix["speedup"] = round(prefix["new_s"] / prefix["cached_s"], 2)
    together = medians(engine, bench.together, max(1, repeats // 2))
    report = {
        "prefix": prefix,
        "together": together,
        "chunk_256_ms": round(bench.chunk_ms(), 2),
        "arrival_4000": medians(engine, lambda: bench.arrival(LONG), repeats),
        "arrival_64": medians(engine, lambda: bench.arrival(SHORT), repeats),
        "streaming": medians(
            engine,
            lambda: {
                "with": bench.streaming(True),
                "without": bench.streaming(False),
            },
            repeats,
        ),
    }
    return report | {"statistics": engine.statistics()}


def make_engine(shape: str | None) -> Engine:
    """Return an engine with the default model, or with random weights of a shape."""
    capacity = Capacity(
        requests=16, rows=32, nodes=256, pages=512, page_size=64, chunk=256
    )
    if shape is None:
        model, tokenizer = load_model("smollm2-135m-instruct", dtype=jnp.float32)
        return Engine(model, tokenizer, capacity=capacity)
    model = Llama.random(SHAPES[shape], seed=0, dtype=jnp.bfloat16)
    return Engine(model, IdsOnly(), capacity=capacity)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line: print one JSON line, and write it."""
    parser = argparse.ArgumentParser(description="Requests that come and go")
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args(arguments)
    bench = Bench(make_engine(options.shape), np.random.default_rng(0))
    report = machine_facts() | {"shape": options.shape or "smollm2-135m, float32"}
    report |= run(bench, options.repeats)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    main()
