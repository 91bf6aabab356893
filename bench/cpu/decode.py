"""Prefill and decode of SmolLM2 on the CPU against the machine's own ceilings.

    python -m deft_jax.bench.cpu.decode [--repeats 5] [--output results.json]

Prompt of 700 tokens, 64 new tokens, float32, 1 and 16 branches. The ceilings are
measured in the same run, on the same weights:

* matrix rate: the products of one prefill chunk with every layer's weights, and
  nothing else;
* weight pass: the products of one row with every weight, the head included, and nothing
  else: what a decode step of one branch cannot beat; and the same with 16 rows.
"""

import argparse
import dataclasses
import datetime
import json
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from deft_jax import BestOfN, Engine, Sampling
from deft_jax.attention.tuning.search import wall_seconds
from deft_jax.capacity import LARGE_CHUNK
from deft_jax.models.families.llama import Llama
from deft_jax.models.load import load_model

from ..machine import machine_facts

MODEL = "smollm2-135m-instruct"
PROMPT_TOKENS = 700
NEW_TOKENS = 64
BRANCHES = (1, 16)
PROMPT = (
    "The lighthouse keeper wrote down the weather every hour: wind, cloud and the "
    "height of the sea. On the third night of the storm the lamp went out. "
)


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the machine can do with the model's weights.

    Attributes:
        matrix_gflops: rate of the layers' matrix products at the prefill chunk's size.
        weight_pass_ms: one row times every weight.
        weight_pass_16_ms: 16 rows times every weight, what 16 branches cannot beat.
        weight_pass_gbs: the bytes of the weights over that time.
    """

    matrix_gflops: float
    weight_pass_ms: float
    weight_pass_16_ms: float
    weight_pass_gbs: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print card, ceilings, table and one JSON line."""
    parser = argparse.ArgumentParser(description="CPU benchmark")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args(arguments)
    report = run(options.repeats)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


def run(repeats: int) -> dict:
    """Measure everything, print card, ceilings and table, and return the report."""
    begin = time.perf_counter()
    model, tokenizer = load_model(MODEL, dtype=jnp.float32)
    load_s = time.perf_counter() - begin
    console = Console(width=100)
    card = machine_facts() | {
        "date": datetime.date.today().isoformat(),
        "model": MODEL,
        "dtype": "float32",
        "load_s": round(load_s, 2),
    }
    console.print(card)
    ceilings = measure_ceilings(model, repeats)
    console.print(dataclasses.asdict(ceilings))
    prompt = (tokenizer.encode(PROMPT) * 40)[:PROMPT_TOKENS]
    # Every call is to read its prompt.
    engine = Engine(model, tokenizer, prefix_cache=False)
    runs = [measure(engine, prompt, n, ceilings, repeats) for n in BRANCHES]
    console.print(_table(runs))
    return card | {
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "repeats": repeats,
        "ceilings": dataclasses.asdict(ceilings),
        "runs": runs,
        "n16_over_n1": round(runs[1]["tokens_per_s"] / runs[0]["tokens_per_s"], 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def measure_ceilings(model: Llama, repeats: int) -> Ceilings:
    """Time bare products of the model's weights."""
    layers = [_matrices(layer) for layer in model.layers]
    head = model.head.weight[...]
    width = head.shape[0]

    def seconds(rows: int, head: jax.Array | None) -> float:
        x = jax.random.normal(jax.random.key(rows), (rows, width))
        return wall_seconds(lambda: _chain(x, layers, head), repeats=2 * repeats)

    weights = sum(w.size for layer in layers for w in layer)
    chunk_s, row_s = seconds(LARGE_CHUNK, None), seconds(1, head)
    return Ceilings(
        matrix_gflops=round(2 * LARGE_CHUNK * weights / chunk_s / 1e9, 1),
        weight_pass_ms=round(row_s * 1e3, 2),
        weight_pass_16_ms=round(seconds(16, head) * 1e3, 2),
        weight_pass_gbs=round((weights + head.size) * 4 / row_s / 1e9, 1),
    )


def measure(
    engine: Engine, prompt: list[int], n: int, ceilings: Ceilings, repeats: int
) -> dict:
    """Time whole calls of the engine after one that compiles; medians."""
    sampling = Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=1)

    def call():
        return engine.generate([prompt], BestOfN(n), sampling)[0]

    call()
    trees = [call() for _ in range(repeats)]
    prefill_s = statistics.median(tree.prefill_s for tree in trees)
    decode_s = statistics.median(tree.decode_s for tree in trees)
    model = engine.model
    assert isinstance(model, Llama)
    weights = sum(w.size for layer in model.layers for w in _matrices(layer))
    prefill_gflops = 2 * len(prompt) * weights / prefill_s / 1e9
    step_ms = decode_s / NEW_TOKENS * 1e3
    return {
        "n": n,
        "prefill_s": round(prefill_s, 3),
        "prefill_gflops": round(prefill_gflops, 1),
        "prefill_share_of_matrix_rate": round(
            prefill_gflops / ceilings.matrix_gflops, 3
        ),
        "step_ms": round(step_ms, 2),
        "step_over_weight_pass": round(step_ms / ceilings.weight_pass_ms, 3),
        "tokens_per_s": round(n * NEW_TOKENS / decode_s, 1),
        "kv_read_saved": round(trees[0].stats.kv_read_saved, 3),
    }


def _matrices(layer) -> list[jax.Array]:
    return [
        layer.qkv.weight[...],
        layer.out.weight[...],
        layer.gate_up.weight[...],
        layer.down.weight[...],
    ]


@jax.jit
def _chain(x: jax.Array, layers: list[list[jax.Array]], head: jax.Array | None):
    """Send x [rows, E] through every product of the network and nothing else."""
    for qkv, out, gate_up, down in layers:
        x = (x @ qkv)[:, : out.shape[0]] @ out
        x = (x @ gate_up)[:, : down.shape[0]] @ down
    return x if head is None else x @ head


def _table(runs: list[dict]) -> Table:
    table = Table(title=f"{PROMPT_TOKENS}-token prompt, {NEW_TOKENS} new tokens")
    for name in runs[0]:
        table.add_column(name, justify="right", overflow="fold")
    for run in runs:
        table.add_row(*(str(value) for value in run.values()))
    return table


if __name__ == "__main__":
    main()
