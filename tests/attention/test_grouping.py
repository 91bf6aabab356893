"""The masks and work lists against what each query sees on its own path."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.attention.grouping import (
    Grouping,
    default_tile_queries,
    group,
    group_arrays,
)
from deft_jax.attention.work_lists import NARROW_SHARE, WorkList
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.pruning import accept, prune
from deft_jax.tree.state import NO_NODE, Tree
from tests.support.forest_plans import Limits, Plan, plans
from tests.support.forests import Forest, grow, walk_paths

LIMITS = Limits(nodes=200, pages=256, page_size=8, rows=144)
TILES = [4, 24, 64]

NAMED = {
    "one_token": Plan(LIMITS, nodes=1),
    "no_live_row": Plan(LIMITS, nodes=9, reach=9, queries=0),
    "every_node_empty": Plan(LIMITS, nodes=9, reach=9, tokens=(0,)),
    "every_row_in_use": Plan(LIMITS, nodes=200, roots=0.9),
    "few_shot": Plan(LIMITS, nodes=51, reach=51, tokens=(8, 33)),
    "chain": Plan(LIMITS, nodes=200, inner=True),
    "long_chunk": Plan(LIMITS, nodes=1, tokens=(200,), queries=128, seed=1),
    "chunks": Plan(LIMITS, nodes=4, roots=1.0, tokens=(60,), queries=50),
    "token_tree": Plan(LIMITS, nodes=65, reach=20, drafts=1.0, inner=True),
    "token_trees": Plan(LIMITS, 99, reach=9, roots=0.1, drafts=0.9, inner=True),
}

group_jit = jax.jit(group, static_argnames="tile_queries")
group_arrays_jit = jax.jit(group_arrays, static_argnames="tile_queries")


def grouped(forest: Forest, tile_queries: int | None) -> Grouping:
    """Return the grouping of a forest with numpy arrays."""
    grouping = group_jit(forest.tree, forest.slots, tile_queries=tile_queries)
    rows = forest.slots.node.shape[0]
    assert grouping.tile_queries == (tile_queries or default_tile_queries(rows))
    return jax.device_get(grouping)


def paths_by_rank(forest: Forest, grouping: Grouping) -> list[list[tuple[int, int]]]:
    return [forest.paths[row] for row in grouping.order]


def check_ranks(forest: Forest, grouping: Grouping) -> None:
    """Ranks are depth-first, in row order within a node; rows that see nothing last."""
    first = np.append(np.asarray(forest.tree.first), forest.tree.num_nodes)
    number = first[np.asarray(forest.slots.node)].tolist()
    rows = range(len(forest.paths))
    expected = sorted(rows, key=lambda row: (not forest.paths[row], number[row], row))
    seeing = sum(map(bool, forest.paths))
    assert grouping.order[:seeing].tolist() == expected[:seeing]
    assert sorted(grouping.order) == list(rows)
    np.testing.assert_array_equal(grouping.rank[grouping.order], rows)


def check_masks(forest: Forest, grouping: Grouping) -> None:
    """Assert that a slot's range holds just the queries whose path has its token."""
    rank = np.arange(grouping.num_queries)[:, None, None]
    sees = np.zeros((len(rank), *grouping.slot_first.shape), bool)
    for query, path in enumerate(paths_by_rank(forest, grouping)):
        for position, at in enumerate(path):
            sees[query][at] = True
            assert grouping.slot_position[at] == position
        assert not path or grouping.query_position[query] == len(path) - 1
    masks = (grouping.slot_first <= rank) & (rank < grouping.slot_end)
    np.testing.assert_array_equal(masks, sees)


def check_work(forest: Forest, grouping: Grouping) -> None:
    """Assert that the lists hold a page once for each rank from its first to its last.

    So each query that sees it has it once, and a page that none sees is in no list.
    """
    seeing = {}
    for rank, path in enumerate(paths_by_rank(forest, grouping)):
        for page in {page for page, _ in path}:
            seeing.setdefault(page, []).append(rank)
    ranges = {page: range(seen[0], seen[-1] + 1) for page, seen in seeing.items()}
    covered = Counter(covered_pairs(grouping.wide, grouping.tile_queries, ranges))
    covered.update(covered_pairs(grouping.narrow, 1, ranges))
    pairs = [(page, rank) for page, ranks in ranges.items() for rank in ranks]
    assert covered == Counter(pairs)
    check_reads(grouping, ranges)


def check_reads(grouping: Grouping, ranges: dict[int, range]) -> None:
    """Assert that a page is listed once per tile, or for a few queries at most."""
    tile = grouping.tile_queries
    listed = Counter([*pages_of(grouping.wide), *pages_of(grouping.narrow)])
    for page, ranks in ranges.items():
        num_tiles = ranks[-1] // tile - ranks[0] // tile + 1
        assert listed[page] <= max(num_tiles, tile // NARROW_SHARE)


def pages_of(work: WorkList) -> list[int]:
    return work.page[: work.num_pairs].tolist()


def covered_pairs(
    work: WorkList, width: int, ranges: dict[int, range]
) -> Iterator[tuple[int, int]]:
    """Return the (page, rank) of a list's tiles, within the range of the page."""
    used = slice(int(work.num_pairs))
    for page, start in zip(work.page[used], work.query[used], strict=True):
        assert page in ranges, f"page {page} is listed, but no query sees it"
        ranks = [rank for rank in range(start, start + width) if rank in ranges[page]]
        assert ranks, (
            f"page {page} is listed for ranks {start} on, which see none of it"
        )
        yield from ((int(page), rank) for rank in ranks)


def check_tiles(grouping: Grouping) -> None:
    """Wide pairs are sorted by tile, then by the first rank that sees the page."""
    offset, tile = grouping.wide.offset, grouping.tile_queries
    assert len(offset) == 1 - (-grouping.num_queries // tile)
    assert offset[0] == 0
    for index, (begin, end) in enumerate(zip(offset, offset[1:], strict=False)):
        assert set(grouping.wide.query[begin:end]) <= {index * tile}
        assert (np.diff(grouping.page_first[grouping.wide.page[begin:end]]) >= 0).all()


def check(forest: Forest, tile_queries: int | None = None) -> None:
    grouping = grouped(forest, tile_queries)
    check_ranks(forest, grouping)
    check_masks(forest, grouping)
    check_work(forest, grouping)
    check_tiles(grouping)


@given(plans(LIMITS), st.sampled_from(TILES))
def test_grouping_follows_the_paths(plan: Plan, tile_queries: int):
    check(grow(plan), tile_queries)


@pytest.mark.parametrize("tile_queries", TILES)
@pytest.mark.parametrize("plan", NAMED.values(), ids=NAMED)
def test_grouping_of_a_named_forest(plan: Plan, tile_queries: int):
    check(grow(plan), tile_queries)


@given(plans(LIMITS), st.sampled_from(TILES))
def test_plain_arrays_give_the_same_grouping(plan: Plan, tile_queries: int):
    expected = grouped(grow(plan), tile_queries)
    names = ("slot_first", "slot_end", "slot_position", "query_position", "num_live")
    arrays = {name: getattr(expected, name) for name in names}
    actual = group_arrays_jit(**arrays, tile_queries=tile_queries)
    rows = np.arange(LIMITS.rows, dtype=np.int32)
    in_order = dataclasses.replace(expected, order=rows, rank=rows)
    jax.tree.map(np.testing.assert_array_equal, actual, in_order)


def test_plain_arrays_of_other_shapes_are_refused():
    slots, queries = np.zeros((4, 16), int), np.zeros(3, int)
    expected = r"got \(4, 16\), \(4, 16\), \(4, 8\) and \(3,\)"
    with pytest.raises(ValueError, match=expected):
        group_arrays(slots, slots, slots[:, :8], queries, 3)


@pytest.mark.parametrize("tile_queries", TILES)
def test_nothing_is_listed_when_no_row_is_live(tile_queries: int):
    grouping = grouped(grow(NAMED["no_live_row"]), tile_queries)
    assert grouping.wide.num_pairs == grouping.narrow.num_pairs == 0
    assert grouping.order.tolist() == list(range(LIMITS.rows))


@pytest.mark.parametrize("num_workers", [1, 3, 132, 1000])
@pytest.mark.parametrize("plan", ["no_live_row", "few_shot", "token_trees"])
def test_shares_are_even_and_cover_all_pairs(plan: str, num_workers: int):
    grouping = grouped(grow(NAMED[plan]), 24)
    for work in (grouping.wide, grouping.narrow):
        bounds = np.asarray(work.shares(num_workers))
        sizes = np.diff(bounds)
        assert len(sizes) == num_workers
        assert (bounds[0], bounds[-1]) == (0, work.num_pairs)
        assert 0 <= sizes.min() and sizes.max() - sizes.min() <= 1


def test_one_trace_serves_every_forest_within_the_capacity():
    traces = []

    @jax.jit
    def counted(tree, slots):
        traces.append(None)
        return group(tree, slots)

    for plan in NAMED.values():
        forest = grow(plan)
        counted(forest.tree, forest.slots)
    assert len(traces) == 1


def test_tiles_hold_a_small_batch_or_64_queries():
    sizes = [default_tile_queries(rows) for rows in (1, 9, 64, 65, 1000)]
    assert sizes == [1, 9, 64, 64, 64]


def test_grouping_follows_a_forest_as_it_is_decoded():
    """A prompt in two chunks, branches, a pruned leaf, drafts, an accepted path."""
    tree = Tree.create(num_nodes=12, num_pages=16, page_size=4)
    tree, (root, other, _) = branched(tree, NO_NODE, 2)
    tree = appended(tree, [root] * 5 + [other])
    tree = appended(tree, [root, other, other])
    tree, (left, right, doomed) = branched(tree, root, 3)
    tree = appended(tree, [doomed, right, left, other])
    tree = pruned(tree, doomed)
    tree = appended(tree, [right, left])
    tree, (first, second, _) = branched(tree, left, 2, draft=True)
    tree = appended(tree, [second, right, first])
    tree, (third, _, _) = branched(tree, second, 1, draft=True)
    tree = appended(tree, [third, right])
    tree = accept_jit(tree, jnp.array([third]))
    appended(tree, [left, right, left, left])


append_jit, branch_jit = jax.jit(append), jax.jit(branch)
prune_jit, accept_jit = jax.jit(prune), jax.jit(accept)


def branched(tree: Tree, parent: int, count: int, draft: bool = False):
    """Add `count` children, at most three; return the tree and their numbers."""
    rows = jnp.full(3, parent, jnp.int32)
    mask = jnp.arange(3) < count
    tree, nodes = branch_jit(tree, rows, mask, jnp.full(3, draft))
    return tree, nodes.tolist()


def pruned(tree: Tree, node: int) -> Tree:
    return prune_jit(tree, jnp.arange(tree.num_nodes) == node)


def appended(tree: Tree, nodes: list[int]) -> Tree:
    """Append a token per entry and check the grouping; return the tree."""
    idle = [tree.num_nodes] * (8 - len(nodes))
    rows = jnp.array([*idle, *nodes], jnp.int32)
    tree, slots = append_jit(tree, rows, jnp.zeros(8, jnp.int32))
    check(Forest(tree=tree, slots=slots, paths=walk_paths(tree, slots)))
    return tree
