"""`deft_node` and `deft_node_chunk`: KV grouped by node, nodes whole or in chunks."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.backend import Backend
from deft_jax.attention.grouping import Grouping, group
from deft_jax.attention.hopper import attend
from deft_jax.attention.kernel_inputs import prepare, tiling_of
from deft_jax.attention.plan import AttentionPlan, KernelPlan, plan_attention
from deft_jax.attention.schedule import Schedule, describe_tiles, divide
from deft_jax.attention.shares import Shares, even_shares, shares_at
from deft_jax.attention.spec import AttentionSpec, Tiling
from deft_jax.attention.units import BOTH, NUM_CLASSES, WHOLE, classify
from deft_jax.attention.work_lists import WorkList
from deft_jax.attention.xla import BLOCK_TOKENS
from deft_jax.capacity import Capacity
from deft_jax.kv.pool import LayerKV
from deft_jax.layers.ops import FULL
from deft_jax.layers.qkv import QKV
from deft_jax.pallas_kernels.grouped_partial_attention import work
from deft_jax.runtime.attention_method import (
    Pool,
    Specs,
    StepPlan,
    TreeMethod,
    append_pages,
)
from deft_jax.tree.appending import Slots
from deft_jax.tree.counting import exclusive_cumsum
from deft_jax.tree.state import Tree


@dataclasses.dataclass(frozen=True)
class NodeMethod(TreeMethod):
    """Every part of a node is read once, for all queries below it, by one worker.

    The kernels' workers get whole parts (DeFT, arXiv 2404.00242, section 3.3: KV-guided
    grouping without and with naive splitting): the even shares of `deft_flatten` are
    moved back to where a part begins. A part begins with the first block of units that
    begins in it; the rest of the block before goes with the part before. In "xla",
    which has no workers, blocks of pages do not cross nodes.

    Attributes:
        implementation: "mosaic_gpu", "xla" or None for the best.
        chunk_tokens: parts of a node are of so many tokens; None for whole nodes.
    """

    chunk_tokens: int | None = None

    def create_pool(self, config, capacity: Capacity, dtype: jnp.dtype) -> Pool:
        """Return the tree's pages and one that nobody sees, to fill blocks in "xla"."""
        capacity = dataclasses.replace(capacity, pages=capacity.pages + 1)
        return super().create_pool(config, capacity, dtype)

    def plan(
        self,
        tree: Tree,
        slots: Slots,
        pool: Pool,
        previous_node: jax.Array | None,
        specs: Specs,
    ) -> tuple[StepPlan, Pool]:
        """Group the queries, and list the work of each kind of layer node by node."""
        # What idle rows write must miss the page that nobody sees, too.
        live = slots.page < tree.num_pages
        page = jnp.where(live, slots.page, tree.num_pages + 1)
        slots = dataclasses.replace(slots, page=page)
        grouping, number = group(tree, slots), slot_numbers(tree)
        attention = {
            kind: self._plan_kind(grouping, number, tree.num_nodes, spec)
            for kind, spec in specs.items()
        }
        return StepPlan.create(grouping, slots, attention), pool

    def _plan_kind(
        self, grouping: Grouping, number: jax.Array, num_nodes: int, spec: AttentionSpec
    ) -> AttentionPlan:
        plan = plan_attention(grouping, spec, implementation=self.implementation)
        if plan.backend is not Backend.HOPPER:
            grouping = _by_nodes(grouping, number, num_nodes)
            return plan_attention(grouping, spec, implementation=self.implementation)
        assert plan.kernels is not None
        sizes = plan.kernels.sizes
        with jax.named_scope("grouping"):
            tiling = tiling_of(sizes)
            schedule = node_schedule(grouping, number, tiling, self.chunk_tokens)
            inputs = prepare(grouping, sizes, schedule=schedule)
        return dataclasses.replace(plan, kernels=KernelPlan(inputs, sizes))

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV, kind: str = FULL
    ) -> tuple[jax.Array, LayerKV]:
        """Attend node by node."""
        attention = plan.of_kind(kind)
        kernels = attention.kernels
        if kernels is None or attention.backend is not Backend.HOPPER:
            return super().attend(plan, heads, layer, kind)
        q, layer = append_pages(plan, heads, layer, self.implementation)
        with jax.named_scope("attention"):
            # The kernels do not know of the page that nobody sees.
            args = kernels.sizes, q, layer.k, layer.v, kernels.inputs
            return attend(*args)[0], layer


def slot_numbers(tree: Tree) -> jax.Array:
    """Return the depth-first number [M, P] int32 of each slot's node, N if empty."""
    return jnp.append(tree.first, jnp.int32(tree.num_nodes))[tree.slot_node]


def node_schedule(
    grouping: Grouping, number: jax.Array, tiling: Tiling, chunk_tokens: int | None
) -> Schedule:
    """Make work lists with units in the order of their nodes, divided at parts.

    What one half of a tile sees is read under a mask as if both did: the blocks of the
    two halves would take turns, and so would their nodes.

    Args:
        grouping: what each query of the step sees.
        number: [M, P] int32, depth-first number of each slot's node. A unit that holds
            tokens of several nodes, a trunk's drafts, is the first one's.
        tiling: sizes of tiles, units and blocks.
        chunk_tokens: parts of a node are of so many tokens; None for whole nodes.
    """
    classes = classify(grouping, tiling, None)
    halves = (classes > BOTH) & (classes < NUM_CLASSES)
    classes = jnp.where(halves, BOTH, classes)
    owner = jnp.min(number.reshape(-1, tiling.unit_tokens), axis=1)
    unit, ends = _list_units(classes, owner)
    tile, positions = describe_tiles(ends, classes.shape[1], tiling)
    begin = _part_begins(unit, tile, owner, tiling, chunk_tokens)

    def shares(total, workers) -> Shares:
        return shares_at(_snap(even_shares(total, workers).bound, positions, begin))

    return divide(unit, tile, positions, shares, grouping.num_live, tiling)


def _list_units(classes, owner):
    """List units by tile, class and node, and where the classes end, [T, 4] int32."""
    owner = jnp.broadcast_to(owner[None], classes.shape)
    unit = jnp.arange(classes.shape[1], dtype=jnp.int32)
    unit = jnp.broadcast_to(unit[None], classes.shape)
    listed = lax.sort((classes, owner, unit), dimension=1, num_keys=2)[2]
    kind = jnp.arange(WHOLE, NUM_CLASSES, dtype=jnp.int32)
    upto = classes[:, None] <= kind[None, :, None]
    return listed.ravel(), jnp.sum(upto, axis=2, dtype=jnp.int32)


def _part_begins(unit, tile, owner, tiling: Tiling, chunk_tokens: int | None):
    """Return where the part begins that each position of each tile belongs to.

    Returns:
        [T, positions] int32, a position of the same tile.
    """
    per_block = tiling.block_tokens // tiling.unit_tokens
    num_units = len(unit) // len(tile)
    # A block more for each class, for what does not fill one.
    block = jnp.arange(num_units // per_block + NUM_CLASSES, dtype=jnp.int32)
    units_of = jax.vmap(work.block_units, in_axes=(None, None, 0))

    def begins(row):
        first, _ = units_of(per_block, work.Tile(*row), block)
        node = owner[unit[jnp.clip(first, 0, len(unit) - 1)]]
        new = (node != jnp.roll(node, 1)) | (block == 0)
        begin = lax.cummax(jnp.where(new, block, 0))
        if chunk_tokens is None:
            return begin
        size = max(1, chunk_tokens // tiling.block_tokens)
        return begin + (block - begin) // size * size

    return jax.vmap(begins)(tile)


def _snap(bound, positions, begin):
    """Move bounds back to where parts begin; the first and the last stay.

    The shares that become empty come last: who merges a tile takes all workers up to
    the one with its end to have a piece.
    """
    upto = exclusive_cumsum(positions)
    per_head, total = upto[-1], bound[-1]
    head, within = bound // per_head, bound % per_head
    tile = jnp.sum(upto[None, 1:] <= within[:, None], axis=1, dtype=jnp.int32)
    bound = head * per_head + upto[tile] + begin[tile, within - upto[tile]]
    empty = jnp.append(False, bound[1:] == bound[:-1])
    return jnp.sort(jnp.where(empty, total, bound))


def _by_nodes(grouping: Grouping, number: jax.Array, num_nodes: int) -> Grouping:
    """Return the grouping with a list of pages in which each node begins a block.

    The rest of a node's last block is page M of the pool, which is no page of the tree.
    All pages are listed for one tile of all queries.
    """
    num_pages, page_size = number.shape
    block = max(1, BLOCK_TOKENS // page_size)
    seen = grouping.page_first < grouping.page_end
    owner = jnp.where(seen, jnp.min(number, axis=1), num_nodes)
    page = jnp.argsort(owner, stable=True).astype(jnp.int32)
    owner = owner[page]
    count = jnp.zeros(num_nodes + 1, jnp.int32).at[owner].add(1)
    start = exclusive_cumsum(-(-count // block) * block)
    nth = jnp.arange(num_pages, dtype=jnp.int32) - exclusive_cumsum(count)[owner]
    capacity = num_pages * block
    at = jnp.where(owner < num_nodes, start[owner] + nth, capacity)
    wide = WorkList(
        page=jnp.full(capacity, num_pages, jnp.int32).at[at].set(page, mode="drop"),
        query=jnp.zeros(capacity, jnp.int32),
        offset=jnp.stack([jnp.int32(0), start[num_nodes]]),
    )
    slots = {
        name: jnp.pad(getattr(grouping, name), ((0, 1), (0, 0)))
        for name in ("slot_first", "slot_end", "slot_position")
    }
    return dataclasses.replace(
        grouping,
        wide=wide,
        narrow=dataclasses.replace(grouping.narrow, offset=jnp.zeros(2, jnp.int32)),
        tile_queries=grouping.num_queries,
        **slots,
    )
