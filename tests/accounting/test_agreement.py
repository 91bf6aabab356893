"""The IO account against the kernels' own schedule and what the engine reports."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.accounting.methods import count_io, total
from deft_jax.accounting.sizes import AttentionSizes, KernelSizes, kv_bytes
from deft_jax.accounting.tree_steps import TreeSteps, search_stretches
from deft_jax.attention.grouping import group
from deft_jax.attention.hopper import make_spec
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.schedule import partial_bytes
from deft_jax.attention.spec import Logits
from deft_jax.bench.trees.level_tree import level_tree
from deft_jax.pallas_kernels.kernel_spec import KernelSpec
from deft_jax.results.counters import share_saved
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.tree.state import NO_NODE
from tests.support.shapes import HEADS
from tests.support.tiny_model import CONFIG, tiny_engine

# nodes and tokens per level, heads; wide and narrow, merged by either kernel.
SCHEDULED = {
    "chain": ((1,), (5000,), "llama3_8b"),
    "few_shot": ((1, 50), (4000, 200), "llama3_8b"),
    "deep": ((1, 4, 16, 64), (256, 128, 64, 32), "llama3_8b"),
    "merged_in_the_kernel": ((1, 200), (3000, 50), "llama3_8b"),
    "a_worker_per_tile": ((1, 7, 500), (3000, 50, 33), "llama3_8b"),
    "ungrouped": ((1, 64), (4000, 100), "phi2"),
    "group_of_three": ((1, 12), (6000, 90), "smollm2_135m"),
}


def scheduled(nodes, tokens, heads) -> tuple[TreeSteps, KernelSpec, int]:
    """Return a level tree, the kernels' sizes for it, and partial bytes they write."""
    tree, slots = level_tree(nodes, tokens, page_size=16)
    pages = tree.slot_node.shape[0], heads.num_kv, 16, heads.head_dim
    q = jax.ShapeDtypeStruct((nodes[-1], heads.num_q, heads.head_dim), jnp.bfloat16)
    k = jax.ShapeDtypeStruct(pages, jnp.bfloat16)
    spec = make_spec(q, k, Logits(1.0, None, None), num_workers=132)

    @jax.jit
    def written():
        *_, schedule = prepare(group(tree, slots), spec)
        return partial_bytes(spec, schedule)

    steps = TreeSteps.create(np.asarray(tree.parent), np.asarray(tree.count))
    return steps, spec, int(written())


@pytest.mark.parametrize("case", SCHEDULED)
def test_partial_bytes_are_those_of_the_schedule(case: str):
    """Within 10 %, and never off by more pieces than tiles may meet ends of shares.

    Half-empty units make tiles up to 15 % longer than their tokens (50 and 33 in units
    of 16), so ends move, but only those that meet a border of tiles change the number
    of pieces.
    """
    nodes, tokens, name = SCHEDULED[case]
    heads = HEADS[name]
    steps, spec, written = scheduled(nodes, tokens, heads)
    sizes = AttentionSizes(
        num_q_heads=heads.num_q,
        num_kv_heads=heads.num_kv,
        head_dim=heads.head_dim,
        itemsize=2,
    )
    found = count_io("deft_flatten", steps, sizes, KernelSizes.of(spec)).partial_bytes
    assert written > 0
    assert found / 2 == pytest.approx(written, rel=0.1)
    piece = spec.halves * (spec.partial_rows * heads.head_dim * 2 + 64 * 4)
    off = abs(found / 2 - written) / piece
    assert off == int(off) < min(spec.num_workers, spec.num_pairs)


def test_kernel_sizes_are_those_of_the_spec():
    nodes, tokens, name = SCHEDULED["few_shot"]
    _, spec, _ = scheduled(nodes, tokens, HEADS[name])
    assert KernelSizes.of(spec) == KernelSizes(
        tile_queries=26,
        halves=2,
        block_tokens=64,
        num_workers=128,
        mask_bytes_per_token=8,
    )


def test_generation_reports_the_account():
    """A node is fed all its tokens but the last, one a step."""
    sampling = Sampling(temperature=0.9, max_new_tokens=24, seed=7)
    results = tiny_engine().generate(["Hello world", "x"], BestOfN(4), sampling)
    sizes = AttentionSizes(
        num_q_heads=CONFIG.num_q_heads,
        num_kv_heads=CONFIG.num_kv_heads,
        head_dim=CONFIG.head_dim,
        itemsize=4,
        num_layers=CONFIG.num_layers,
    )
    runs = []
    for tree in results:
        parents = [NO_NODE if x.parent is None else x.parent for x in tree.nodes]
        fed = [len(x.tokens) - (x.parent is not None) for x in tree.nodes]
        runs += search_stretches(parents, fed)
    shared, alone = (
        total(count_io(method, steps, sizes) for steps in runs).kv_bytes
        for method in ("deft_flatten", "radix")
    )
    stats = results[0].stats
    assert (stats.kv_bytes_read, stats.kv_bytes_read_per_sequence) == (shared, alone)
    assert stats.kv_read_saved == share_saved(shared, alone) > 0.1
    assert kv_bytes(stats.kv_tokens_read, sizes) == shared


RESULTS = Path(__file__).parents[2] / "bench" / "results"
COUNTED = json.loads((RESULTS / "dram_reads_h100.json").read_text())["cases"]


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: row["name"])
def test_the_gpu_counts_what_the_account_says(row):
    """Bytes read from memory by the kernels on an H100, within 10 %.

    Queries of several tiles read shared KV once from memory, and again from the cache.
    """
    heads = {name: row[name] for name in ("num_q_heads", "num_kv_heads", "head_dim")}
    sizes = AttentionSizes(**heads, itemsize=2)
    tree, _ = level_tree(row["nodes"], row["tokens_per_node"], page_size=16)
    steps = TreeSteps.create(np.asarray(tree.parent), np.asarray(tree.count))
    q = row["leaves"], heads["num_q_heads"], heads["head_dim"]
    pages = tree.num_pages, heads["num_kv_heads"], 16, heads["head_dim"]
    q, k_pages = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (q, pages))
    spec = make_spec(q, k_pages, Logits(1.0, None, None), num_workers=132)
    once = count_io("deft_flatten", steps, sizes)
    tiled = count_io("deft_flatten", steps, sizes, KernelSizes.of(spec))
    # Outputs and partial results are written too, the one as large as the queries.
    half = once.query_output_bytes + tiled.partial_bytes
    expected = once.kv_bytes + tiled.mask_bytes + half / 2
    assert row["dram_read_bytes"] == pytest.approx(expected, rel=0.1)
