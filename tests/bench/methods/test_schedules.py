"""Work lists of the methods' kernels, walked, interpreted and lowered without a GPU."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

from deft_jax.attention import device as device_module
from deft_jax.attention.grouping import Grouping, group, group_arrays
from deft_jax.attention.hopper import attend, make_spec
from deft_jax.attention.kernel_inputs import prepare, tiling_of
from deft_jax.attention.schedule import Schedule
from deft_jax.attention.shares import even_shares
from deft_jax.attention.spec import AttentionSpec, Logits, Tiling
from deft_jax.attention.units import BOTH, WHOLE
from deft_jax.bench.methods.choice import make_method
from deft_jax.bench.methods.duplicated import Caches, cache_work
from deft_jax.bench.methods.node import node_schedule, slot_numbers
from deft_jax.bench.methods.sequence_spec import sequence_spec
from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.layers.ops import FULL
from deft_jax.layers.qkv import QKV
from deft_jax.models.config.shapes import SHAPES
from deft_jax.pallas_kernels.grouped_partial_attention import work
from deft_jax.pallas_kernels.kernel_spec import KernelSpec
from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree
from tests.attention.test_schedule import (
    LIMITS,
    NAMED,
    TILINGS,
    Sight,
    check_coverage,
    check_first_units,
    check_merges,
    check_shares,
    check_slots,
    sight_of,
    units_where,
)
from tests.pallas_kernels.grouped_partial_attention.test_hopper_interpreted import (
    ERROR,
    LSE_ERROR,
    TWO_STAGES,
    expected_results,
    kernel_case,
)
from tests.support.attention_checks import GARBAGE, Case, Inputs, inputs
from tests.support.forest_plans import Limits, Plan, plans
from tests.support.forests import Forest, grow
from tests.support.kernels import interpreter_shim
from tests.support.kernels.interpreter_shim import races_raise
from tests.support.schedule_walk import Block, Piece, blocks_of, walk
from tests.support.shapes import Heads

CHUNKS = {"whole_nodes": None, "chunks": 64}
ONE_QUERY = {
    "blocks_of_4": Tiling(1, 1, 16, 64, 3, 19),
    "blocks_of_1": Tiling(1, 1, 16, 16, 1, 7),
    "short_units": Tiling(1, 1, 8, 32, 2, 132),
}

each_chunk = pytest.mark.parametrize("chunk_tokens", CHUNKS.values(), ids=CHUNKS)
each_tiling = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
schedule_nodes = jax.jit(node_schedule, static_argnames=("tiling", "chunk_tokens"))
group_jit = jax.jit(group)


def check_walk(schedule: Schedule, tiling: Tiling, num_live: int) -> list[Piece]:
    """Assert what holds for any schedule; return its pieces."""
    pieces = list(walk(schedule, tiling))
    check_coverage(schedule, tiling, pieces)
    check_slots(schedule, tiling, pieces)
    check_merges(schedule, tiling, pieces, num_live)
    check_first_units(schedule, tiling, pieces)
    return pieces


def check_nodes(forest: Forest, tiling: Tiling, chunk_tokens: int | None) -> Schedule:
    grouping = group_jit(forest.tree, forest.slots)
    number = slot_numbers(forest.tree)
    schedule = schedule_nodes(grouping, number, tiling, chunk_tokens)
    grouping, schedule = jax.device_get((grouping, schedule))
    sight = sight_of(forest, grouping, tiling, None)
    owner = owners(forest, tiling)
    tiles = [blocks_of(schedule, tiling, tile) for tile in range(len(schedule.tile))]
    for tile, blocks in enumerate(tiles):
        check_node_tile(blocks, tiling, sight, tile, owner)
    pieces = check_walk(schedule, tiling, sight.num_live)
    begins = [part_begins(blocks, owner, tiling, chunk_tokens) for blocks in tiles]
    check_cuts(schedule, tiling, pieces, begins, list(map(len, tiles)))
    return schedule


def owners(forest: Forest, tiling: Tiling) -> list[int]:
    """Return the first node in depth-first order with a token in each unit."""
    tree = jax.device_get(forest.tree)
    numbers = {tree.num_nodes: tree.num_nodes}
    numbers |= {node: int(first) for node, first in enumerate(tree.first)}
    units = tree.slot_node.reshape(-1, tiling.unit_tokens).tolist()
    return [min(numbers[node] for node in unit) for unit in units]


def check_node_tile(
    blocks: list[Block], tiling: Tiling, sight: Sight, tile: int, owner: list[int]
) -> None:
    """Units that a query sees are listed once, node by node, in a class that fits."""
    units = [unit for block in blocks for unit in block.units]
    assert len(units) == len(set(units))
    halves = sight.rows(tiling, tile)
    live = slice(halves[0].start, min(halves[-1].stop, sight.num_live))
    assert units_where(sight.sees[live].any(axis=(0, 2))) <= set(units)
    near = (units_where(sight.near[rows].any(axis=0)) for rows in halves)
    assert set(units) <= set().union(*near)

    listed = {kind: [] for kind in (WHOLE, BOTH)}
    for kind, some in blocks:
        listed[kind] += [(owner[unit], unit) for unit in some]
    whole = units_where(sight.sees[live].all(axis=(0, 2)) & (live.start < live.stop))
    per_block = tiling.block_tokens // tiling.unit_tokens
    seen_whole = sorted((owner[unit], unit) for unit in whole)
    filled = len(whole) // per_block * per_block
    assert listed[WHOLE] == seen_whole[:filled]
    # What does not fill a block comes first among those under a mask.
    rest = seen_whole[filled:]
    assert listed[BOTH][: len(rest)] == rest
    assert listed[BOTH][len(rest) :] == sorted(listed[BOTH][len(rest) :])


def part_begins(
    blocks: list[Block], owner: list[int], tiling: Tiling, chunk_tokens: int | None
) -> list[int]:
    """Positions of a tile where a worker may begin."""
    nodes = [owner[block.units[0]] for block in blocks]
    begins = [0]
    for _, run in itertools.groupby(range(len(nodes)), key=nodes.__getitem__):
        places = list(run)
        step = len(places)
        if chunk_tokens is not None:
            step = max(1, chunk_tokens // tiling.block_tokens)
        begins += places[::step]
    return sorted(set(begins))


def check_cuts(
    schedule: Schedule,
    tiling: Tiling,
    pieces: list[Piece],
    begins: list[list[int]],
    sizes: list[int],
) -> None:
    """Shares begin where parts do, as late as even shares would; idle workers last."""
    sizes = [max(size, 1) for size in sizes]
    starts = np.cumsum([0, *sizes * tiling.num_kv_heads])[:-1].tolist()
    parts = [
        start + begin
        for start, own in zip(starts, begins * tiling.num_kv_heads, strict=True)
        for begin in own
    ]
    for piece in pieces:
        assert piece.begin in begins[piece.tile]
    total = sum(sizes) * tiling.num_kv_heads
    even = even_shares(jnp.int32(total), tiling.num_workers).bound[:-1].tolist()
    snapped = {max(part for part in parts if part <= bound) for bound in even}
    shares = schedule.worker[:, 3].tolist()
    busy = [share for share in shares if share]
    assert shares == busy + [0] * (len(shares) - len(busy))
    assert np.cumsum([0, *busy]).tolist() == [*sorted(snapped - {total}), total]


@each_chunk
@each_tiling
@given(data=st.data())
def test_nodes_are_walked_whole(tiling: Tiling, chunk_tokens, data: st.DataObject):
    check_nodes(grow(data.draw(plans(LIMITS))), tiling, chunk_tokens)


@pytest.mark.parametrize("tiling", ["two_halves", "one_half"])
@pytest.mark.parametrize("plan", NAMED.values(), ids=NAMED)
def test_nodes_of_a_named_forest(plan: Plan, tiling: str):
    check_nodes(grow(plan), TILINGS[tiling], None)


def test_a_long_node_leaves_workers_idle_unless_it_is_cut():
    limits = Limits(nodes=4, pages=80, page_size=16, rows=4)
    forest = grow(Plan(limits, nodes=2, reach=2, tokens=(640,)))
    tiling = Tiling(4, 1, 16, 64, 1, 7)
    whole, cut = (check_nodes(forest, tiling, chunk) for chunk in (None, 128))
    assert np.count_nonzero(whole.worker[:, 3]) == 2
    assert np.count_nonzero(cut.worker[:, 3]) == 7


PAGES, PAGE_SIZE = 5, 16


@st.composite
def all_caches(draw: st.DrawFn, rows: int) -> Caches:
    """Draw caches of any lengths, the first ranks being live."""
    most = PAGES * PAGE_SIZE
    lengths = draw(st.lists(st.integers(1, most), max_size=rows))
    lengths += [0] * (rows - len(lengths))
    row = draw(st.permutations(range(rows)))
    length, row = (jnp.asarray(x, jnp.int32) for x in (lengths, row))
    return Caches(page=row, slot=row, row=row, length=length)


def empty_grouping(rows: int) -> Grouping:
    """Return the grouping of a tree whose pages do not matter."""
    slots = jnp.zeros((3, PAGE_SIZE), jnp.int32)
    return group_arrays(slots, slots, slots, jnp.zeros(rows, jnp.int32), 0)


@functools.partial(jax.jit, static_argnames="tiling")
def work_of(own: Caches, tiling: Tiling) -> tuple[Grouping, Schedule]:
    rows = own.row.shape[0]
    live = jnp.sum(own.length > 0, dtype=jnp.int32)
    grouping = dataclasses.replace(empty_grouping(rows), num_live=live)
    return cache_work(own, grouping, (rows + 1) * PAGES, tiling)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("tiling", ONE_QUERY.values(), ids=ONE_QUERY)
@given(data=st.data())
def test_each_row_walks_its_own_cache(tiling: Tiling, rows: int, data: st.DataObject):
    own = data.draw(all_caches(rows))
    caches, schedule = jax.device_get(work_of(own, tiling))
    check_walk(schedule, tiling, int(caches.num_live))
    check_shares(schedule, tiling)
    each = PAGES * PAGE_SIZE // tiling.unit_tokens
    per_block = tiling.block_tokens // tiling.unit_tokens
    ranks = zip(own.row.tolist(), own.length.tolist(), strict=True)
    for rank, (row, length) in enumerate(ranks):
        blocks = blocks_of(schedule, tiling, rank)
        units = [unit for block in blocks for unit in block.units]
        seen = -(-length // tiling.unit_tokens)
        assert units == list(range(row * each, row * each + seen))
        full = length // tiling.unit_tokens // per_block
        rest = -(-(seen - full * per_block) // per_block)
        assert [block.kind for block in blocks] == [WHOLE] * full + [BOTH] * rest


@pytest.mark.parametrize("rows", [1, 6])
@given(data=st.data())
def test_masks_show_a_row_its_own_tokens(rows: int, data: st.DataObject):
    own = data.draw(all_caches(rows))
    caches, _ = jax.device_get(work_of(own, ONE_QUERY["blocks_of_4"]))
    shape = rows + 1, PAGES * PAGE_SIZE
    first, end = (x.reshape(shape) for x in (caches.slot_first, caches.slot_end))
    rank = np.arange(rows)[:, None, None]
    expected = np.zeros((rows, *shape), bool)
    for at, (row, length) in enumerate(zip(own.row, own.length, strict=True)):
        expected[at, row, :length] = True
    np.testing.assert_array_equal((first <= rank) & (rank < end), expected)


def test_a_cache_needs_a_tile_of_its_own():
    grouping, rows = empty_grouping(8), jnp.arange(8, dtype=jnp.int32)
    with pytest.raises(DeftError, match="tiles of 1 query, got 8"):
        cache_work(Caches(rows, rows, rows, rows), grouping, 45, TILINGS["two_halves"])


@pytest.fixture
def _shim(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter_shim.install(monkeypatch)


def check_interpreted(case: Case, args: Inputs, spec, pools, prepared) -> None:
    """Compare the kernels with the oracle; a race is an error."""
    params = plgpu.InterpretGPUParams(detect_races=True)
    with races_raise():
        k, v = pools
        results = attend(spec, args.q, k, v, prepared, interpret=params)
        out, lse = (np.asarray(x.astype(jnp.float32)) for x in results)
    expected_out, expected_lse = expected_results(case, args)
    blind = np.isneginf(expected_lse)
    np.testing.assert_array_equal(np.isneginf(lse), blind)
    np.testing.assert_array_equal(out[blind], 0.0)
    size = np.linalg.norm(expected_out)
    assert np.linalg.norm(out - expected_out) <= ERROR * size
    np.testing.assert_allclose(lse[~blind], expected_lse[~blind], atol=LSE_ERROR)


def logits_of(case: Case) -> Logits:
    return Logits(scale=case.heads.head_dim**-0.5, window=None, soft_cap=None)


FEW = Limits(nodes=4, pages=12, page_size=16, rows=2)
BRIEF = Plan(FEW, nodes=3, reach=3, tokens=(70, 5), seed=3)


def two_rows(heads: Heads, workers: int) -> tuple[Case, Forest, Inputs, KernelSpec]:
    """Return a case whose tiles hold one query, and the forest behind its arguments."""
    case = kernel_case(heads, FEW)
    forest = grow(BRIEF)
    args = inputs(case, forest, seed=1)
    spec = sequence_spec(args.q, args.poisoned[0], logits_of(case), workers)
    assert spec.tile_queries == 1 and args.grouping.num_live == 2
    return case, forest, args, spec


@pytest.mark.usefixtures("_shim")
def test_sequences_agree_with_the_oracle():
    """Merged by the attention; not even the heads of a KV head fill a group of 8."""
    case, _, args, spec = two_rows(Heads(4, 1, 64), workers=3)
    prepared = prepare(args.grouping, spec)
    assert spec.fused
    check_interpreted(case, args, spec, args.poisoned, prepared)


@pytest.mark.usefixtures("_shim")
def test_caches_agree_with_the_oracle():
    """Merged by the reduction; the rows of a query are as few as can be copied."""
    case, forest, args, spec = two_rows(Heads(1, 1, 64), workers=7)
    own, pools = cached(case, forest, args)
    sizes = pools[0].shape[0], tiling_of(spec)
    caches, schedule = cache_work(own, args.grouping, *sizes)
    prepared = prepare(caches, spec, schedule=schedule)
    assert not spec.fused
    check_interpreted(case, args, spec, pools, prepared)


def cached(case: Case, forest: Forest, args: Inputs):
    """Return each row's path in a cache of its own, and garbage everywhere else."""
    size, rows = case.limits.page_size, case.limits.rows
    longest = max(map(len, forest.paths))
    pages = longest // size + 1
    shape = rows + 1, case.heads.num_kv, pages * size, case.heads.head_dim
    pools = [np.full(shape, GARBAGE, np.float32) for _ in range(2)]
    for row, path in enumerate(forest.paths):
        for position, (page, slot) in enumerate(path):
            for pool, clean in zip(pools, args.clean, strict=True):
                pool[row, :, position] = clean[page, :, slot].astype(jnp.float32)
    shape = rows + 1, case.heads.num_kv, pages, size, case.heads.head_dim
    pools = [
        jnp.asarray(pool.reshape(shape).swapaxes(1, 2), case.dtype).reshape(
            -1, shape[1], *shape[3:]
        )
        for pool in pools
    ]
    row = args.grouping.order
    length = jnp.asarray([len(forest.paths[at]) for at in row.tolist()], jnp.int32)
    return Caches(page=row, slot=row, row=row, length=length), pools


@pytest.mark.usefixtures("_shim")
def test_nodes_agree_with_the_oracle():
    """Two halves of a tile, which is merged, and a worker that gets no part."""
    case = kernel_case(Heads(16, 2, 64))
    forest = grow(Plan(case.limits, nodes=14, reach=14, tokens=(200, 9), seed=28))
    args = inputs(case, forest, seed=1)
    options = {"config": TWO_STAGES, "num_workers": 6}
    spec = make_spec(args.q, args.poisoned[0], logits_of(case), **options)
    number = slot_numbers(forest.tree)
    schedule = node_schedule(args.grouping, number, tiling_of(spec), None)
    shares = work.Share(*schedule.worker[:, : work.SHARE_FIELDS].T)
    assert spec.halves == 2 and spec.fused and int(shares.merges.max()) == 2
    assert shares.blocks.tolist().count(0) == 1
    prepared = prepare(args.grouping, spec, schedule=schedule)
    check_interpreted(case, args, spec, args.poisoned, prepared)


LLAMA = SHAPES["llama3_8b"]
ROWS = (1, 2, 24, 50, 64, 128, 256)
"""Queries of a step of the workloads, and more."""

LOWERED = [
    *(("radix", rows) for rows in ROWS),
    *itertools.product(("flash_decoding", "deft_node"), (1, 50, 256)),
]


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "compute_capability", lambda device=None: (9, 0))


def lowered_calls(method: AttentionMethod, rows: int, *, reads_prompt: bool) -> int:
    """Kernels of a layer at Llama-3-8B's shapes: the store, attention, reduction."""
    size = Capacity(
        requests=1, rows=rows, nodes=2 * rows, pages=80, page_size=64, chunk=rows
    )
    config = dataclasses.replace(LLAMA, num_layers=1)
    sizes = Heads(config.num_q_heads, config.num_kv_heads, config.head_dim)
    spec = AttentionSpec.create(sizes, "bfloat16")

    def layer(tree, slots, before, heads, pool):
        before = None if reads_prompt else before
        plan, pool = method.plan(tree, slots, pool, before, {FULL: spec})
        (own,) = pool
        return method.attend(plan, heads, own)

    def shape(*sizes, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    tree = jax.eval_shape(lambda: Tree.create(size.nodes, size.pages, size.page_size))
    row = shape(rows, dtype="int32")
    slots = jax.eval_shape(Slots, row, row, row, row)
    angles = shape(rows, config.head_dim // 2, dtype="float32")
    num_heads = config.num_q_heads + 2 * config.num_kv_heads
    heads = shape(rows, num_heads, config.head_dim)
    static = {"num_kv_heads": config.num_kv_heads, "eps": config.rms_eps}
    inputs = shape(rows, config.hidden_size)
    make = functools.partial(QKV, **static)
    heads = jax.eval_shape(make, inputs, heads, angles, angles)
    dtype = jnp.dtype("bfloat16")
    pool = jax.eval_shape(lambda: method.create_pool(config, size, dtype))
    args = tree, slots, row, heads, pool
    text = jax.jit(layer).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("custom_call @mosaic_gpu")


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize(("method", "rows"), LOWERED)
def test_decoding_lowers(method: str, rows: int):
    made = make_method(method, "mosaic_gpu", path_tokens=4400)
    assert lowered_calls(made, rows, reads_prompt=False) in (2, 3)


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize("method", ["flash_decoding", "deft_node"])
def test_reading_a_prompt_lowers(method: str):
    made = make_method(method, "mosaic_gpu", path_tokens=4400)
    assert lowered_calls(made, 256, reads_prompt=True) in (2, 3)
