"""The IO account against the paper's table and trees counted by hand."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.accounting.methods import METHODS, IOAccount, Method, count_io, total
from deft_jax.accounting.sizes import AttentionSizes, KernelSizes
from deft_jax.accounting.tree_steps import TreeSteps, few_shot, search_stretches
from deft_jax.errors import DeftError
from deft_jax.results.counters import share_saved
from deft_jax.tree.state import NO_NODE

WORKLOADS = Path(__file__).parents[2] / "bench" / "workloads"
TERA = 1e12
PAPER_SIZES = AttentionSizes(
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    itemsize=2,
    num_layers=32,
    kv_per_query_head=True,
)

# Per column: terabytes of KV per sequence, KV of the tree, Medusa's mask and
# intermediates, DeFT-Flatten's mask, and the percentage of KV IO saved.
PAPER = {
    "b=20": (17.62, 1.68, 1.05, 0.0, 90.5),
    "b=30": (26.43, 2.10, 1.98, 0.0, 92.1),
    "b=50": (44.05, 2.94, 4.61, 0.0, 93.3),
    "sorting": (59.96, 12.40, 3.69, 0.01, 79.3),
    "docmerge": (39.74, 10.57, 3.24, 0.01, 73.4),
}
FEW_SHOT_STEPS = 399


@functools.cache
def mean_account(column: str, method: Method, steps: int = FEW_SHOT_STEPS):
    """Return [5] float64, terabytes of each part of the account, mean of the trees."""
    if column.startswith("b="):
        runs = [[few_shot(4000, int(column[2:]), steps)]]
    else:
        file = WORKLOADS / f"reasoning_{column}.json"
        trees = json.loads(file.read_text())["trees"]
        runs = [search_stretches(tree["parents"], tree["tokens"]) for tree in trees]
    accounts = [count_io(method, x, PAPER_SIZES) for run in runs for x in run]
    return np.array(dataclasses.astuple(total(accounts))) / len(runs) / TERA


@pytest.mark.parametrize("column", PAPER)
@pytest.mark.parametrize("method", ["flash_decoding", "radix"])
def test_paper_reads_of_sequences(column: str, method: Method):
    kv, _, mask, intermediates, _ = mean_account(column, method)
    assert kv == pytest.approx(PAPER[column][0], rel=0.01)
    assert mask == intermediates == 0


@pytest.mark.parametrize("column", PAPER)
def test_paper_medusa(column: str):
    kv, _, mask, intermediates, _ = mean_account(column, "medusa")
    assert kv == pytest.approx(PAPER[column][1], rel=0.01)
    assert mask + intermediates == pytest.approx(PAPER[column][2], rel=0.01)


@pytest.mark.parametrize("column", PAPER)
def test_paper_deft_flatten(column: str):
    kv, _, mask, intermediates, _ = mean_account(column, "deft_flatten")
    assert kv == pytest.approx(PAPER[column][1], rel=0.01)
    assert round(mask + intermediates, 2) == PAPER[column][3]


@pytest.mark.parametrize("column", PAPER)
def test_paper_kv_saved(column: str):
    tree, paths = (mean_account(column, m)[0] for m in ("deft_flatten", "radix"))
    assert round(100 * share_saved(tree, paths), 1) == PAPER[column][4]


@pytest.mark.parametrize("column", ["b=20", "b=30", "b=50"])
def test_paper_few_shot_to_the_last_digit_with_400_steps(column: str):
    """The release logs 399 steps; the table has one more."""
    paths, medusa = (mean_account(column, m, 400) for m in ("radix", "medusa"))
    found = paths[0], medusa[0], medusa[2] + medusa[3]
    assert tuple(round(x, 2) for x in found) == PAPER[column][:3]


def test_counters_of_the_released_medusa():
    """Few-shot, 20 leaves: what the release logged on another GPU, byte for byte."""
    counted = count_io("medusa", few_shot(4000, 20, 399), PAPER_SIZES)
    logged_qk, logged_softmax = 261_488_640_000, 522_977_280_000
    assert counted.query_output_bytes == 4_183_818_240
    assert counted.mask_bytes == 4_085_760_000
    assert counted.intermediate_bytes == 2 * logged_qk + logged_softmax
    assert counted.kv_bytes == 1_673_527_296_000


# 0(3) ┬ 1(2, one query)
#      └ 2(1) ─ 3(4, two queries)
# 10 tokens; the paths of its sequences have 5 and 8, the groups on them 2 and 3 nodes.
TINY = TreeSteps.create([-1, 0, 0, 2], [3, 2, 1, 4], [0, 1, 0, 2])
TINY_SIZES = AttentionSizes(num_q_heads=4, num_kv_heads=2, head_dim=8, itemsize=2)
ROW, KV = 16, 64  # Bytes of one head's query, and of a token's keys and values.
PARTIAL = 2 * (ROW + 4)  # A row of a partial result, written and read.
OUT = 3 * 4 * ROW  # Three queries, four heads.
PIECE = 8 * ROW + 64 * 4  # Rows come in groups of 8, log-sum-exps in tiles of 64.

BY_HAND: dict[str, tuple[Method, KernelSizes, tuple[int, ...]]] = {
    "flash_decoding": ("flash_decoding", KernelSizes(), (13 * KV, 2 * OUT, 0, 0, 0)),
    "radix": (
        "radix",
        KernelSizes(num_splits=4),
        (13 * KV, 5 * OUT, 0, 0, 12 * 4 * PARTIAL),
    ),
    "medusa": ("medusa", KernelSizes(), (10 * KV, 2 * OUT, 30 * 2, 30 * 4 * 16, 0)),
    "deft_node": (
        "deft_node",
        KernelSizes(),
        (10 * KV, 8 * 4 * ROW + OUT, 0, 0, 8 * 4 * PARTIAL),
    ),
    # The root's three queries take two tiles.
    "deft_node, tiles": (
        "deft_node",
        KernelSizes(tile_queries=2),
        (13 * KV, 8 * 4 * ROW + OUT, 0, 0, 8 * 4 * PARTIAL),
    ),
    # 2, 1, 1 and 2 chunks: 3 on the one path, 5 on the other.
    "deft_node_chunk": (
        "deft_node_chunk",
        KernelSizes(chunk_tokens=2),
        (10 * KV, 13 * 4 * ROW + OUT, 0, 0, 13 * 4 * PARTIAL),
    ),
    "deft_flatten": ("deft_flatten", KernelSizes(), (10 * KV, 2 * OUT, 10 * 8, 0, 0)),
    # Tiles of queries 0 1 | 2 see 10 and 8 tokens: xxxxx xxxx xxxxx xxxx in shares of
    # 6 blocks. Both ends are within a tile, and the attention kernel merges.
    "deft_flatten, tiles": (
        "deft_flatten",
        KernelSizes(tile_queries=2, block_tokens=2, num_workers=3),
        (18 * KV, 2 * OUT + 2 * 2 * 2 * ROW, 18 * 8, 0, 2 * 2 * PIECE),
    ),
    # One tile, xxxxx xxxxx: xx|xx|x x|x|x|x|x, six ends; two tiles' first pieces too.
    "deft_flatten, workers": (
        "deft_flatten",
        KernelSizes(block_tokens=2, num_workers=7),
        (10 * KV, 2 * OUT + 6 * 3 * 2 * ROW, 10 * 8, 0, 2 * 8 * PIECE),
    ),
    # Rows of a half, 2 * 2, fill up to 8 as well.
    "deft_flatten, halves": (
        "deft_flatten",
        KernelSizes(block_tokens=2, num_workers=7, halves=2),
        (10 * KV, 2 * OUT + 6 * 3 * 2 * ROW, 10 * 8, 0, 2 * 8 * 2 * PIECE),
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_tiny_tree_by_hand(case: str):
    method, kernel, expected = BY_HAND[case]
    found = count_io(method, TINY, TINY_SIZES, kernel)
    assert dataclasses.astuple(found) == expected
    assert found.total_bytes == sum(expected)
    layers = dataclasses.replace(TINY_SIZES, num_layers=3)
    tripled = count_io(method, TINY, layers, kernel)
    assert dataclasses.astuple(tripled) == tuple(3 * x for x in expected)


def test_lone_chain_has_no_partial_results():
    chain = TreeSteps.create([-1], [9])
    for method in METHODS:
        found = count_io(method, chain, TINY_SIZES)
        assert found.kv_bytes == 9 * KV and found.partial_bytes == 0


def test_dead_nodes_and_idle_steps_are_not_read():
    dead = TreeSteps.create([-1, 0, 0, -1], [3, 2, 7, 5], [0, 1, 0, 0])
    live = TreeSteps.create([-1, 0], [3, 2])
    idle = TreeSteps.create([-1], [3], [0])
    for method in METHODS:
        assert count_io(method, idle, TINY_SIZES) == IOAccount()
        counted = (count_io(method, x, TINY_SIZES) for x in (dead, live))
        assert len(set(counted)) == 1


def test_saving_is_against_the_sequences():
    tree, paths = (count_io(m, TINY, TINY_SIZES) for m in ("deft_flatten", "radix"))
    assert share_saved(tree.kv_bytes, paths.kv_bytes) == 1 - 10 / 13
    assert share_saved(0, 0) == 0


@st.composite
def trees(draw: st.DrawFn) -> TreeSteps:
    """Forests with a few steps, queries anywhere but at least one."""
    size = draw(st.integers(1, 9))
    parents = [draw(st.integers(NO_NODE, node - 1)) for node in range(size)]
    queries = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    queries[-1] = max(queries[-1], 1)
    steps = draw(st.integers(1, 4))
    numbers = st.lists(st.integers(3, 300), min_size=size, max_size=size)
    tokens = draw(st.lists(numbers, min_size=steps, max_size=steps))
    return TreeSteps.create(parents, tokens, queries)


kernels = st.builds(
    KernelSizes,
    num_splits=st.integers(1, 5),
    chunk_tokens=st.sampled_from([1, 64, 512]),
    tile_queries=st.sampled_from([None, 1, 2, 7]),
    block_tokens=st.sampled_from([1, 16, 64]),
    num_workers=st.sampled_from([1, 3, 40]),
)


@pytest.mark.parametrize("method", METHODS)
@given(steps=trees(), kernel=kernels)
def test_steps_add_up(method: Method, steps: TreeSteps, kernel: KernelSizes):
    each = [
        TreeSteps.create(steps.parents, tokens, steps.queries)
        for tokens in steps.tokens
    ]
    alone = [count_io(method, step, TINY_SIZES, kernel) for step in each]
    assert total(alone) == count_io(method, steps, TINY_SIZES, kernel)


@given(steps=trees(), kernel=kernels)
def test_a_tree_reads_no_more_than_its_sequences(steps, kernel):
    unlimited = dataclasses.replace(kernel, tile_queries=None)
    radix = count_io("radix", steps, TINY_SIZES, kernel)
    for method in ("deft_node", "deft_node_chunk", "deft_flatten", "medusa"):
        found = count_io(method, steps, TINY_SIZES, unlimited)
        assert found.kv_bytes <= radix.kv_bytes
        narrow = count_io(method, steps, TINY_SIZES, kernel)
        assert narrow.kv_bytes >= found.kv_bytes
    single = count_io("deft_flatten", steps, TINY_SIZES, KernelSizes(tile_queries=1))
    tokens = steps.along_path(steps.tokens) @ steps.queries
    assert single.kv_bytes == KV * tokens.sum()


@given(st.lists(st.integers(1, 99), min_size=1, max_size=9))
def test_a_chain_saves_nothing(tokens: list[int]):
    chain = TreeSteps.create(range(-1, len(tokens) - 1), tokens)
    tree, paths = (count_io(m, chain, TINY_SIZES) for m in ("deft_flatten", "radix"))
    assert tree.kv_bytes == paths.kv_bytes == KV * sum(tokens)


@pytest.mark.parametrize("method", METHODS)
@given(steps=trees(), kernel=kernels)
def test_query_heads_multiply_the_kv_alone(method: Method, steps, kernel):
    sizes = dataclasses.replace(TINY_SIZES, num_q_heads=6)
    per_query_head = dataclasses.replace(sizes, kv_per_query_head=True)
    grouped, paper = (
        count_io(method, steps, x, kernel) for x in (sizes, per_query_head)
    )
    expected = dataclasses.replace(grouped, kv_bytes=3 * grouped.kv_bytes)
    assert paper == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_q_heads": 5}, "multiple of num_kv_heads 2, got 5; give"),
        ({"head_dim": 0}, "expected head_dim of at least 1, got 0; give"),
        ({"num_layers": -1}, "expected num_layers of at least 1, got -1; give"),
    ],
)
def test_attention_sizes_are_checked(changed: dict, message: str):
    sizes = dataclasses.replace(TINY_SIZES, **changed)
    with pytest.raises(DeftError, match=message):
        count_io("radix", TINY, sizes)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(KernelSizes)]
)
def test_kernel_sizes_are_checked(name: str):
    with pytest.raises(DeftError, match=f"expected {name} of at least 1, got 0; give"):
        count_io("deft_flatten", TINY, TINY_SIZES, KernelSizes(**{name: 0}))


def test_methods_are_checked():
    with pytest.raises(DeftError, match="expected one of flash_decoding, .*'tree'"):
        count_io("tree", TINY, TINY_SIZES)  # pyright: ignore[reportArgumentType]
