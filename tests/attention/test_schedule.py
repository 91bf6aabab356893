"""The schedules of random forests, walked against what each query sees on its path."""

import dataclasses
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.attention import units as units_module
from deft_jax.attention.grouping import Grouping, group
from deft_jax.attention.schedule import Schedule, make_schedule
from deft_jax.attention.spec import Tiling
from deft_jax.attention.units import BOTH, FIRST_HALF, SECOND_HALF, WHOLE
from deft_jax.pallas_kernels.grouped_partial_attention import work
from deft_jax.pallas_kernels.kernel_spec import KernelConfig, KernelSpec
from deft_jax.tree import counting as counts_module
from deft_jax.tree.appending import Slots
from tests.support.forest_plans import Limits, Plan, plans
from tests.support.forests import Forest, grow
from tests.support.schedule_walk import Piece, blocks_of, walk

LIMITS = Limits(nodes=80, pages=96, page_size=32, rows=72)
ROOMY = Limits(nodes=500, pages=700, page_size=16, rows=640)

TILINGS = {
    "two_halves": Tiling(4, 2, 16, 32, 2, 7),
    "one_half": Tiling(16, 1, 16, 64, 3, 132),
    "short_units": Tiling(5, 2, 8, 32, 1, 40),
    "whole_pages": Tiling(64, 2, 32, 32, 4, 3),
    "one_worker": Tiling(1, 1, 16, 16, 2, 1),
}

NAMED = {
    "one_token": Plan(LIMITS, nodes=1),
    "no_live_query": Plan(LIMITS, nodes=9, reach=9, queries=0),
    "few_shot": Plan(LIMITS, nodes=51, reach=51, tokens=(33, 70)),
    "chain": Plan(LIMITS, nodes=80, inner=True),
    "token_trees": Plan(LIMITS, 70, reach=9, roots=0.1, drafts=0.9, inner=True),
    "chunks": Plan(LIMITS, nodes=4, roots=1.0, tokens=(90,), queries=50),
    "far_below_capacity": Plan(ROOMY, nodes=6, reach=6, tokens=(5, 40)),
    "none_of_a_large_capacity": Plan(ROOMY, nodes=6, queries=0),
}

group_jit = jax.jit(group)
schedule_jit = jax.jit(make_schedule, static_argnames=("tiling", "window"))


@dataclasses.dataclass(frozen=True)
class Sight:
    """What the queries of a forest see, by rank.

    Attributes:
        sees: [Q, E, U] bool, within the window.
        near: [Q, E] bool, true between the first and the last query that see a token of
            the unit, whatever the window.
        num_live: queries of the step.
    """

    sees: np.ndarray
    near: np.ndarray
    num_live: int

    def rows(self, tiling: Tiling, tile: int) -> list[slice]:
        """Live queries of the halves of a tile."""
        size = tiling.half_queries
        starts = [(tile * tiling.halves + half) * size for half in range(tiling.halves)]
        return [slice(at, max(at, min(at + size, self.num_live))) for at in starts]


def sight_of(forest: Forest, grouping: Grouping, tiling: Tiling, window) -> Sight:
    seen = np.zeros((2, grouping.num_queries, *grouping.slot_first.shape), bool)
    for rank, row in enumerate(grouping.order):
        path = forest.paths[row]
        for position, at in enumerate(path):
            back = len(path) - 1 - position
            seen[:, rank, *at] = True, window is None or back < window
    anywhere, sees = seen.reshape(2, grouping.num_queries, -1, tiling.unit_tokens)
    touched = anywhere.any(axis=2)
    upto, onward = (np.logical_or.accumulate(x) for x in (touched, touched[::-1]))
    return Sight(sees, upto & onward[::-1], int(grouping.num_live))


def scheduled(forest: Forest, tiling: Tiling, window=None) -> tuple[Grouping, Schedule]:
    """Return grouping and schedule of a forest, with numpy arrays."""
    grouping = group_jit(forest.tree, forest.slots)
    return jax.device_get((grouping, schedule_jit(grouping, tiling, window=window)))


def check(forest: Forest, tiling: Tiling, window: int | None = None) -> None:
    grouping, schedule = scheduled(forest, tiling, window)
    sight = sight_of(forest, grouping, tiling, window)
    for tile in range(len(schedule.tile)):
        check_tile(schedule, tiling, sight, tile)
    pieces = list(walk(schedule, tiling))
    check_shares(schedule, tiling)
    check_coverage(schedule, tiling, pieces)
    check_slots(schedule, tiling, pieces)
    check_merges(schedule, tiling, pieces, sight.num_live)
    check_first_units(schedule, tiling, pieces)
    assert not schedule.flags.any()


def check_tile(schedule: Schedule, tiling: Tiling, sight: Sight, tile: int) -> None:
    """Assert that each unit a tile sees is listed once, in a class that fits."""
    listed = {kind: set() for kind in (WHOLE, BOTH, FIRST_HALF, SECOND_HALF)}
    blocks = blocks_of(schedule, tiling, tile)
    for kind, units in blocks:
        listed[kind].update(units)
    units = [unit for block in blocks for unit in block.units]
    assert len(units) == len(set(units))

    halves = sight.rows(tiling, tile)
    live = slice(halves[0].start, min(halves[-1].stop, sight.num_live))
    whole = units_where(sight.sees[live].all(axis=(0, 2)) & (live.start < live.stop))
    per_block = tiling.block_tokens // tiling.unit_tokens
    assert listed[WHOLE] <= whole
    assert len(listed[WHOLE]) == len(whole) // per_block * per_block

    everyone = listed[WHOLE] | listed[BOTH]
    read = [everyone | listed[FIRST_HALF], everyone | listed[SECOND_HALF]]
    near = [units_where(sight.near[rows].any(axis=0)) for rows in halves]
    for rows, units in zip(halves, read, strict=False):
        assert units_where(sight.sees[rows].any(axis=(0, 2))) <= units
    assert listed[BOTH] <= whole | (near[0] & near[-1])
    assert listed[FIRST_HALF] <= near[0]
    assert listed[SECOND_HALF] <= near[-1]
    assert tiling.halves == 2 or not listed[FIRST_HALF] | listed[SECOND_HALF]


def units_where(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(mask).tolist())


def check_shares(schedule: Schedule, tiling: Tiling) -> None:
    """Shares differ by one block at most."""
    blocks = schedule.worker[:, 3]
    assert len(blocks) == tiling.num_workers
    assert blocks.max() - blocks.min() <= 1


def check_coverage(schedule: Schedule, tiling: Tiling, pieces: list[Piece]) -> None:
    """Assert that the pieces of a head and tile are its positions, in order."""
    stops = defaultdict(int)
    for piece in pieces:
        assert stops[piece.head, piece.tile] == piece.begin
        stops[piece.head, piece.tile] = piece.stop
    num_tiles = len(schedule.tile)
    sizes = [len(blocks_of(schedule, tiling, tile)) for tile in range(num_tiles)]
    assert stops == {
        (head, tile): max(size, 1)
        for head in range(tiling.num_kv_heads)
        for tile, size in enumerate(sizes)
    }


def check_slots(schedule: Schedule, tiling: Tiling, pieces: list[Piece]) -> None:
    """Pieces have slots of their own, which `Schedule.pieces` tells the reduction.

    The portable kernels' slots: `worker + pair`.
    """
    num_tiles = len(schedule.tile)
    workers = defaultdict(list)
    for piece in pieces:
        workers[piece.head * num_tiles + piece.tile].append(piece.worker)
    for pair, (first, count) in enumerate(schedule.pieces.tolist()):
        assert workers[pair] == list(range(first, first + count))
    slots = Counter(pair + worker for pair in workers for worker in workers[pair])
    assert set(slots.values()) == {1}
    assert 0 <= min(slots)
    assert max(slots) < tiling.num_workers + tiling.num_kv_heads * num_tiles


def check_merges(
    schedule: Schedule, tiling: Tiling, pieces: list[Piece], num_live: int
) -> None:
    """Whoever begins a tile merges what all others compute of it."""
    last = {piece.worker: piece for piece in pieces}
    cut = Counter((p.head, p.tile) for p in pieces if p.begin > 0)
    for worker, row in enumerate(schedule.worker):
        share, piece = work.Share(*row[: work.SHARE_FIELDS]), last.get(worker)
        assert share.live == num_live
        if piece is None or piece.begin > 0:
            assert share.merges == 0
            continue
        assert share.merges == cut.pop((piece.head, piece.tile), 0)
        second = piece.tile * tiling.tile_queries + tiling.half_queries
        assert share.merge_halves == 1 + (tiling.halves > 1 and second < num_live)
    assert not cut


def check_first_units(schedule: Schedule, tiling: Tiling, pieces: list[Piece]) -> None:
    """Assert that a worker's row ends with its first block's units, repeated."""
    per_block = tiling.block_tokens // tiling.unit_tokens
    seen = set()
    for piece in pieces:
        if piece.blocks and piece.worker not in seen:
            kinds = [block.kind for block in piece.blocks]
            masked = next((i for i, k in enumerate(kinds) if k != WHOLE), 0)
            pairs = tiling.num_kv_heads * len(schedule.tile)
            swaps = pairs > tiling.num_workers and piece.worker % 2
            units = piece.blocks[masked if swaps else 0].units
            padded = [*units, *[units[-1]] * (per_block - len(units))]
            assert schedule.worker[piece.worker, work.FIRST_UNITS :].tolist() == padded
        seen.add(piece.worker)


@pytest.mark.parametrize("window", [None, 45])
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@given(data=st.data())
def test_schedule_follows_the_paths(tiling: Tiling, window, data: st.DataObject):
    check(grow(data.draw(plans(LIMITS))), tiling, window)


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@pytest.mark.parametrize("plan", NAMED.values(), ids=NAMED)
def test_schedule_of_a_named_forest(plan: Plan, tiling: Tiling):
    check(grow(plan), tiling)


@pytest.mark.parametrize("plan", ["no_live_query", "none_of_a_large_capacity"])
def test_tiles_that_see_nothing_have_one_position_each(plan: str):
    tiling = TILINGS["two_halves"]
    _, schedule = scheduled(grow(NAMED[plan]), tiling)
    pieces = list(walk(schedule, tiling))
    assert not any(piece.blocks for piece in pieces)
    assert len(pieces) == tiling.num_kv_heads * len(schedule.tile)
    assert (schedule.pieces[:, 1] == 1).all()


def test_a_window_leaves_out_the_pages_that_are_too_far_back():
    """The last of 320 tokens sees the second half of the window's first unit."""
    tiling = Tiling(16, 1, 16, 16, 1, 4)
    forest = grow(Plan(Limits(1, 20, 16, 16), nodes=1, tokens=(320,)))
    for window, num_units in ((None, 20), (56, 4), (1, 1)):
        _, schedule = scheduled(forest, tiling, window)
        assert len(blocks_of(schedule, tiling, 0)) == num_units


@pytest.mark.parametrize("plan", ["few_shot", "token_trees", "no_live_query"])
def test_the_kernels_walk_it_the_same_way(plan: str):
    tiling = TILINGS["two_halves"]
    grouping, schedule = scheduled(grow(NAMED[plan]), tiling)
    spec = spec_of(tiling, grouping.num_queries)
    expected = list(walk(schedule, tiling))
    pieces = kernel_pieces(spec, schedule)
    assert pieces == [piece[:5] for piece in expected]
    for tile, fields in enumerate(schedule.tile):
        for block, (kind, units) in enumerate(blocks_of(schedule, tiling, tile)):
            actual = kernel_block(spec, work.Tile(*map(jnp.int32, fields)), block)
            assert tuple(schedule.unit[slice(*actual)].tolist()) == units, kind


def spec_of(tiling: Tiling, num_queries: int) -> KernelSpec:
    """Sizes that the walk looks at; the others do not matter."""
    config = KernelConfig(tiling.unit_tokens, tiling.block_tokens)
    return KernelSpec(
        num_queries=num_queries,
        num_kv_heads=tiling.num_kv_heads,
        group=1,
        head_dim=64,
        page_size=LIMITS.page_size,
        half_queries=tiling.half_queries,
        halves=tiling.halves,
        num_workers=tiling.num_workers,
        dtype="bfloat16",
        scale=1.0,
        config=config,
    )


def kernel_pieces(spec: KernelSpec, schedule: Schedule) -> list[tuple[int, ...]]:
    """Worker, head, tile, begin and stop of each piece, as the kernels see them."""
    worker_fields, tile_fields = (
        jnp.asarray(schedule.worker),
        jnp.asarray(schedule.tile),
    )
    room = spec.num_pairs

    @jax.jit
    def pieces(worker):
        def note(piece, carry):
            count, noted = carry
            fields = [worker, piece.head, piece.index, piece.begin, piece.stop]
            return count + 1, noted.at[count].set(jnp.stack(fields))

        empty = jnp.int32(0), jnp.zeros((room, 5), jnp.int32)
        refs = worker_fields, tile_fields
        return work.for_each_piece(spec, *refs, worker, note, empty)

    found = []
    for worker in range(spec.num_workers):
        count, noted = jax.device_get(pieces(jnp.int32(worker)))
        found += map(tuple, noted[:count].tolist())
    return found


def kernel_block(spec: KernelSpec, tile: work.Tile, block: int) -> tuple[int, int]:
    """First unit of a block and the end of its units, as the kernels see them."""
    if block < tile.whole:
        begin = work.whole_units(spec.units_per_block, tile, block)
        return int(begin), int(begin) + spec.units_per_block
    begin, end = work.masked_units(spec.units_per_block, tile, jnp.int32(block))
    return int(begin), min(int(begin) + spec.units_per_block, int(end))


STALE = {
    "roomy": Plan(ROOMY, nodes=400, reach=400, tokens=(3, 40)),
    "reused": Plan(LIMITS, nodes=60, reach=9, tokens=(20, 33), holes=0.4),
}


@pytest.mark.parametrize("plan", [*NAMED.values(), *STALE.values()])
def test_small_and_large_trees_are_scheduled_alike(plan: Plan, monkeypatch):
    """By comparing all pairs and by prefix sums, with old positions in empty slots."""
    forest, tiling = grow(plan), TILINGS["two_halves"]
    empty = forest.tree.slot_node == forest.tree.num_nodes
    stale = jnp.where(empty, 70_000, forest.tree.slot_position)
    tree = dataclasses.replace(forest.tree, slot_position=stale)
    idle = Slots(*map(jnp.int32, (tree.num_nodes, tree.num_pages, 0, 0)))
    slots = jax.tree.map(jnp.append, forest.slots, idle)

    def schedules():
        grouping = jax.jit(lambda *args: group(*args))(tree, slots)
        schedule = jax.jit(lambda x: make_schedule(x, tiling))(grouping)
        return jax.device_get((grouping, schedule))

    for module in (counts_module, units_module):
        monkeypatch.setattr(module, "MAX_COMPARED", 2**30)
    compared = schedules()
    for module in (counts_module, units_module):
        monkeypatch.setattr(module, "MAX_COMPARED", 0)
    jax.tree.map(np.testing.assert_array_equal, compared, schedules())
    units = compared[1].unit.reshape(len(compared[1].tile), -1)
    everyone = np.broadcast_to(np.arange(units.shape[1]), units.shape)
    np.testing.assert_array_equal(np.sort(units, axis=1), everyone)
