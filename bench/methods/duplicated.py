"""`flash_decoding`: a cache per branch, unpaged, copied where a branch begins."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.backend import Backend
from deft_jax.attention.grouping import Grouping, group, group_arrays
from deft_jax.attention.hopper import attend
from deft_jax.attention.kernel_inputs import prepare, tiling_of
from deft_jax.attention.plan import AttentionPlan, KernelPlan
from deft_jax.attention.schedule import Schedule, describe_tiles, divide
from deft_jax.attention.shares import even_shares
from deft_jax.attention.spec import Logits, Tiling
from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.kv import pool as kv_pool
from deft_jax.kv.pool import LayerKV
from deft_jax.layers.ops import FULL
from deft_jax.layers.qkv import QKV
from deft_jax.runtime.attention_method import (
    Pool,
    Specs,
    StepPlan,
    TreeMethod,
    plan_kinds,
)
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree

from .sequence_spec import sequence_spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Caches:
    """Where rows' caches are and how far they reach.

    Attributes:
        page: [B] int32, page of each rank's new token; past the last if idle.
        slot: [B] int32, slot of that token within its page.
        row: [B] int32, row of each rank.
        length: [B] int32, tokens of each rank's path, the new one counted; 0 if idle.
    """

    page: jax.Array
    slot: jax.Array
    row: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class DuplicatedMethod:
    """Every row has a contiguous cache of `S` tokens for its whole path.

    A layer's storage is `k, v: [(B + 1) * S / P, K, P, D]`: page `b * S / P + i` holds
    the tokens of row `b` from position `i * P` on. The last cache is for copies among
    rows in a circle.

    Decodes one request at a time, whose prompt is read into the cache of row 0, and one
    token per row and step, which goes on from the last token of a row of the step
    before. So drafts are not supported; a step cannot tell, but `make_method` refuses.

    Attributes:
        implementation: "mosaic_gpu", "xla" or None for the best.
        path_tokens: longest path; `S` is that in whole pages.
    """

    implementation: str | None = None
    path_tokens: int = 0

    def create_pool(self, config, capacity: Capacity, dtype: jnp.dtype) -> Pool:
        """Return a cache per row, and one more.

        Raises:
            DeftError: there is no longest path, or there are several requests.
        """
        if self.path_tokens < 1 or capacity.requests != 1:
            raise DeftError(
                "flash_decoding needs the length of the longest path and decodes 1 "
                f"request at a time, got {self.path_tokens} tokens and "
                f"{capacity.requests} requests"
            )
        return kv_pool.create_pool(
            config.num_layers,
            (capacity.rows + 1) * self._pages(capacity.page_size),
            config.num_kv_heads,
            capacity.page_size,
            config.head_dim,
            dtype,
        )

    def plan(
        self,
        tree: Tree,
        slots: Slots,
        pool: Pool,
        previous_node: jax.Array | None,
        specs: Specs,
    ) -> tuple[StepPlan, Pool]:
        """Copy the caches that branches begin with, and find where each row writes."""
        pages = self._pages(tree.page_size)
        grouping = group(tree, slots)
        if previous_node is None:
            cache, slots = _prompt_cache(slots, grouping, pages, tree.page_size)
            attention = plan_kinds(cache, specs, self.implementation, pool)
            return StepPlan.create(cache, slots, attention), pool
        with jax.named_scope("tree_operations"):
            pool = copy_caches(find_sources(tree, slots, previous_node), pool, pages)
        own = _find_caches(tree, slots, grouping.order, pages)
        num_pages = (slots.page.shape[0] + 1) * pages
        plans = plan_kinds(grouping, specs, self.implementation, pool)
        attention = {k: _read_caches(plan, own, num_pages) for k, plan in plans.items()}
        return StepPlan.create(grouping, slots, attention, own), pool

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV, kind: str = FULL
    ) -> tuple[jax.Array, LayerKV]:
        """Attend with each row over its own cache."""
        own = plan.extra
        if own is None:
            return self._read_prompt(plan, heads, layer, kind)
        attention = plan.of_kind(kind)
        kernels = attention.kernels
        with jax.named_scope("kv_write"):
            q, layer = heads.append(layer, own.page, own.slot, self.implementation)
        with jax.named_scope("attention"):
            if kernels is not None and attention.backend is Backend.HOPPER:
                args = kernels.sizes, q, layer.k, layer.v, kernels.inputs
                return attend(*args)[0], layer
            return _attend_dense(q, layer, own, attention.spec.logits), layer

    def _pages(self, page_size: int) -> int:
        """Return the number of pages of a cache."""
        return -(-self.path_tokens // page_size)

    def _read_prompt(self, plan: StepPlan, heads: QKV, layer: LayerKV, kind: str):
        """Attend as over a tree whose pages are the first cache."""
        pages = plan.grouping.slot_first.shape[0]
        part = jax.tree.map(lambda x: x[:pages], layer)
        out, part = TreeMethod(self.implementation).attend(plan, heads, part, kind)
        return out, jax.tree.map(lambda x, new: x.at[:pages].set(new), layer, part)


def _read_caches(plan: AttentionPlan, own: Caches, num_pages: int) -> AttentionPlan:
    """Return the plan of a step in which each row reads its own cache."""
    if plan.backend is not Backend.HOPPER:
        return plan
    grouping, spec = plan.grouping, plan.spec
    page_size = grouping.slot_first.shape[1]
    shapes = spec.queries(grouping.num_queries), spec.pages(num_pages, page_size)
    sizes = sequence_spec(*shapes, spec.logits)
    with jax.named_scope("grouping"):
        args = own, grouping, num_pages, tiling_of(sizes)
        caches, schedule = cache_work(*args)
        inputs = prepare(caches, sizes, schedule=schedule)
    return dataclasses.replace(plan, kernels=KernelPlan(inputs, sizes))


def _prompt_cache(
    slots: Slots, grouping: Grouping, pages: int, size: int
) -> tuple[Grouping, Slots]:
    """Group the prompt's tokens by position, wherever the tree has its pages."""
    position = jnp.arange(pages * size, dtype=jnp.int32).reshape(pages, size)
    begin, live = grouping.query_position[0], grouping.num_live
    cache = group_arrays(
        jnp.maximum(position - begin, 0),
        jnp.where(position < begin + live, live, 0),
        position,
        grouping.query_position,
        live,
    )
    cache = dataclasses.replace(cache, order=grouping.order, rank=grouping.rank)
    page = jnp.where(grouping.rank < live, slots.position // size, pages)
    slots = dataclasses.replace(slots, page=page, slot=slots.position % size)
    return cache, slots


def _find_caches(tree: Tree, slots: Slots, row: jax.Array, pages: int) -> Caches:
    size, num_rows = tree.page_size, row.shape[0]
    live = slots.node[row] < tree.num_nodes
    position = slots.position[row]
    page = jnp.where(live, row * pages + position // size, (num_rows + 1) * pages)
    return Caches(page, position % size, row, jnp.where(live, position + 1, 0))


def find_sources(tree: Tree, slots: Slots, previous_node: jax.Array) -> jax.Array:
    """Return the row [B] int32 whose cache each row goes on with; often its own.

    Args:
        tree: the forest after `append`.
        slots: where the query tokens are.
        previous_node: [B] int32, node that each row was at before the step, N for idle
            rows. A row of a new node does not have the node's number before, unless by
            chance: the number of a freed node.
    """
    node = jnp.minimum(slots.node, tree.num_nodes - 1)
    is_new = slots.position == tree.start[node]
    origin = jnp.where(is_new, tree.parent[node], node)
    live = slots.node < tree.num_nodes
    same = (previous_node[None] == origin[:, None]) & live[:, None]
    # The first of all rows that a prompt left at its root, which has the cache.
    source = jnp.argmax(same, axis=1).astype(jnp.int32)
    own = jnp.arange(node.shape[0], dtype=jnp.int32)
    return jnp.where(jnp.any(same, axis=1), source, own)


def copy_caches(source: jax.Array, pool: Pool, pages: int) -> Pool:
    """Copy caches one by one, each when no other row has to read it any more.

    Where all that is left are circles, one cache of a circle is put by in the last one.

    Args:
        source: [B] int32, row that each row's cache is copied from.
        pool: what `DuplicatedMethod.create_pool` made, and later steps wrote.
        pages: number of pages of a cache.
    """
    spare = source.shape[0]
    if spare == 1:
        return pool

    def unfinished(state):
        pending, _, _ = state
        return jnp.any(pending)

    def copy(state):
        pending, source, pool = state
        read = jnp.any(pending[:, None] & (source[:, None] == rows[None]), axis=0)
        ready = pending & ~read
        stuck = ~jnp.any(ready)
        row = jnp.argmax(jnp.where(stuck, pending, ready)).astype(jnp.int32)
        begin = jnp.where(stuck, row, source[row]) * pages
        to = jnp.where(stuck, spare, row) * pages

        def move(x):
            part = lax.dynamic_slice_in_dim(x, begin, pages)
            return lax.dynamic_update_slice_in_dim(x, part, to, 0)

        source = jnp.where(stuck & (source == row), spare, source)
        return pending.at[row].set(stuck), source, jax.tree.map(move, pool)

    rows = jnp.arange(spare, dtype=jnp.int32)
    return lax.while_loop(unfinished, copy, (source != rows, source, pool))[2]


def cache_work(
    own: Caches, grouping: Grouping, num_pages: int, tiling: Tiling
) -> tuple[Grouping, Schedule]:
    """Return the grouping whose slots are the caches', and each row's reads of its own.

    All follows from the lengths alone.

    Args:
        own: where the rows' caches are.
        grouping: what the tree's slots would be read by.
        num_pages: pages of the storage, the spare cache counted.
        tiling: sizes of tiles, units and blocks.

    Raises:
        DeftError: queries come in larger tiles than one.
    """
    if tiling.tile_queries != 1:
        raise DeftError(
            f"flash_decoding needs tiles of 1 query, got {tiling.tile_queries}: the "
            "rows of a query are too short to be copied alone"
        )
    slots = _cache_slots(own, num_pages, grouping.slot_first.shape[1])
    seen = -(-own.length // tiling.unit_tokens)
    whole = own.length // tiling.unit_tokens
    ends = jnp.stack([whole, seen, seen, seen], axis=1)
    num_units = slots["slot_first"].size // tiling.unit_tokens
    each = num_units // (own.row.shape[0] + 1)
    tile, positions = describe_tiles(ends, each, tiling)
    unit = own.row[:, None] * each + jnp.arange(each, dtype=jnp.int32)[None]
    args = unit.ravel(), tile, positions, even_shares, grouping.num_live, tiling
    return dataclasses.replace(grouping, **slots), divide(*args)


def _cache_slots(own: Caches, num_pages: int, page_size: int) -> dict[str, jax.Array]:
    """Return `slot_first`, `slot_end` and `slot_position` of the caches' slots."""
    num_rows, shape = own.row.shape[0], (num_pages, page_size)
    rank = jnp.arange(num_rows, dtype=jnp.int32)
    nobody = jnp.zeros(num_rows + 1, jnp.int32)
    first = nobody.at[own.row].set(rank)[:, None]
    length = nobody.at[own.row].set(own.length)[:, None]
    tokens = num_pages * page_size // (num_rows + 1)
    position = jnp.arange(tokens, dtype=jnp.int32)[None]
    fields = {
        "slot_first": first,
        "slot_end": jnp.where(position < length, first + 1, first),
        "slot_position": position,
    }
    whole = num_rows + 1, tokens
    return {
        name: jnp.broadcast_to(x, whole).reshape(shape) for name, x in fields.items()
    }


def _attend_dense(q, layer: LayerKV, own: Caches, spec: Logits) -> jax.Array:
    """Attend in plain XLA: every row over all its cache's room, under a mask."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = layer.k.shape[1]

    def caches(pages):
        pages = pages.reshape(num_rows + 1, -1, num_kv_heads, *pages.shape[2:])
        pages = pages[own.row].swapaxes(1, 2)
        return pages.reshape(num_rows, num_kv_heads, -1, head_dim)

    heads = q.reshape(num_rows, num_kv_heads, -1, head_dim)
    k, v = caches(layer.k), caches(layer.v)
    scores = jnp.einsum("bkgd,bksd->bkgs", heads, k, preferred_element_type=jnp.float32)
    position = jnp.arange(k.shape[2], dtype=jnp.int32)
    seen = position[None] < jnp.maximum(own.length, 1)[:, None]
    scores = jnp.where(seen[:, None, None], spec(scores), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bkgs,bksd->bkgd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(num_rows, num_heads, head_dim).astype(q.dtype)
