"""Tree attention in plain XLA operations: any device, one pass over the live pages.

The work lists of the grouping are walked in blocks of pages under an online softmax. A
page is copied once per tile of queries that sees it, never once per branch, and pages
that hold nothing are not touched.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.reference import tree_attention_reference
from deft_jax.attention.spec import Logits
from deft_jax.attention.work_lists import NARROW_SHARE, WorkList

BLOCK_TOKENS = 512
PAIR_TOKENS = 1024
MASKED = -1e30


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def tree_attention_xla(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping,
    spec: Logits,
) -> tuple[jax.Array, jax.Array]:
    """Attend over the pages, block by block under an online softmax.

    The loops have bounds that are known on the device alone, which reverse mode does
    not go through: derivatives are those of `tree_attention_reference`.

    Args:
        q: [Q, H, D], queries in rank order.
        k_pages: [M, K, P, D], keys; read in q's dtype, block by block.
        v_pages: [M, K, P, D], values.
        grouping: what each query sees, and the pages to walk.
        spec: scale, window and soft cap of the logits.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.
    """
    num_queries, num_q_heads, head_dim = q.shape
    num_kv_heads = k_pages.shape[1]
    tile = grouping.tile_queries
    num_tiles = -(-num_queries // tile)
    padded = jnp.pad(q, ((0, num_tiles * tile - num_queries), (0, 0), (0, 0)))
    heads = padded.reshape(num_tiles * tile, num_kv_heads, -1, head_dim)
    state = _wide_state(heads, k_pages, v_pages, grouping, spec)
    if tile >= NARROW_SHARE:
        state = _add_narrow(state, heads, k_pages, v_pages, grouping, spec)
    peak, total, out = state
    # NaN of a query that is not finite may be lost in its peak, but not in its total.
    blind = (peak <= MASKED / 2) & ~jnp.isnan(total)
    total = jnp.where(blind, 1.0, total)
    out = jnp.where(blind[..., None], 0.0, out / total[..., None])
    lse = jnp.where(blind, -jnp.inf, peak + jnp.log(total))
    shape = (num_tiles * tile, num_q_heads)
    out = out.reshape(*shape, head_dim)[:num_queries].astype(q.dtype)
    return out, lse.reshape(shape)[:num_queries]


@tree_attention_xla.defjvp
def _derivative(spec, primals, tangents):
    grouping = primals[3]

    def reference(q, k_pages, v_pages):
        return tree_attention_reference(q, k_pages, v_pages, grouping, spec)

    _, tangent = jax.jvp(reference, primals[:3], tangents[:3])
    return tree_attention_xla(*primals, spec), tangent


def _wide_state(heads, k_pages, v_pages, grouping, spec):
    """Return the softmax state of every query over the pages that many queries see.

    Returns:
        peak [Q, K, G], total [Q, K, G] and out [Q, K, G, D]: the running maximum, the
        sum of exponentials below it and the sum of values they weight.
    """
    num_rows, num_kv_heads, group, head_dim = heads.shape
    tile = grouping.tile_queries

    def run_tile(index):
        start = index * tile
        q = lax.dynamic_slice_in_dim(heads, start, tile)
        q = q.transpose(1, 0, 2, 3).reshape(num_kv_heads, tile * group, head_dim)
        position = grouping.query_position
        position = jnp.pad(position, (0, num_rows - position.shape[0]))
        position = lax.dynamic_slice_in_dim(position, start, tile)
        sees = _tile_mask(grouping, start, position, group, spec.window)
        block = _Block(k_pages, v_pages, grouping.wide, sees, spec)
        peak, total, out = block.walk(q, grouping.wide.offset, index)
        shape = (num_kv_heads, tile, group)
        return (
            peak.reshape(shape).transpose(1, 0, 2),
            total.reshape(shape).transpose(1, 0, 2),
            out.reshape(*shape, head_dim).transpose(1, 0, 2, 3),
        )

    num_tiles = num_rows // tile
    if num_tiles == 1:
        return run_tile(0)
    tiles = lax.map(run_tile, jnp.arange(num_tiles, dtype=jnp.int32))
    return jax.tree.map(lambda x: x.reshape(num_rows, *x.shape[2:]), tiles)


def _tile_mask(grouping, start, position, group, window):
    """Return a function from pages [J] and valid [J] to what a tile's queries see.

    Its result is [tile * G, J * P] bool, true where the query sees the token. Heads
    share it, so that the comparisons are made once for all of them.
    """
    rank = start + jnp.arange(position.shape[0], dtype=jnp.int32)
    rank, position = (jnp.repeat(x, group)[:, None] for x in (rank, position))

    def sees(pages, valid):
        first, end, at = (
            x[pages].reshape(1, -1)
            for x in (grouping.slot_first, grouping.slot_end, grouping.slot_position)
        )
        seen = (first <= rank) & (rank < end)
        seen &= jnp.repeat(valid, grouping.slot_first.shape[1])[None]
        if window is not None:
            seen &= position - at < window
        return seen

    return sees


@dataclasses.dataclass(frozen=True)
class _Block:
    """Walks one tile's pages in blocks; the same page is seen by the whole tile."""

    k_pages: jax.Array
    v_pages: jax.Array
    work: WorkList
    sees: Callable[[jax.Array, jax.Array], jax.Array]
    spec: Logits

    def walk(self, q, offset, index):
        """Return the softmax state of q [K, rows, D] over a tile's pairs.

        Its pairs are `offset[index] : offset[index + 1]` of the work list.
        """
        num_kv_heads, rows, head_dim = q.shape
        begin, stop = offset[index], offset[index + 1]
        pages = max(1, min(BLOCK_TOKENS // self.k_pages.shape[2], self.work.page.size))

        def step(i, state):
            at = begin + i * pages + jnp.arange(pages, dtype=jnp.int32)
            page = self.work.page[jnp.minimum(at, stop - 1)]
            return self.attend(q, page, at < stop, state)

        empty = (
            jnp.full((num_kv_heads, rows), MASKED),
            jnp.zeros((num_kv_heads, rows)),
            jnp.zeros((num_kv_heads, rows, head_dim)),
        )
        return lax.fori_loop(0, (stop - begin + pages - 1) // pages, step, empty)

    def attend(self, q, page, valid, state):
        """Add one block of pages to the softmax state of a tile.

        A row that has seen nothing so far counts 1 per masked token, which the factor
        exp(MASKED - peak) = 0 wipes out as soon as it sees one.
        """
        peak, total, out = state
        seen = self.sees(page, valid)
        k, v = (
            _gather_heads(x, page).astype(q.dtype) for x in (self.k_pages, self.v_pages)
        )
        # 0 times NaN is NaN: what nobody sees is left out by selection.
        v = jnp.where(jnp.any(seen, axis=0)[None, :, None], v, 0)
        scores = lax.dot_general(
            q, k, (((2,), (2,)), ((0,), (0,))), **_products(q.dtype)
        )
        scores = jnp.where(seen[None], self.spec(scores), MASKED)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_peak[..., None])
        fade = jnp.exp(peak - new_peak)
        values = lax.dot_general(
            weights.astype(v.dtype),
            v,
            (((2,), (1,)), ((0,), (0,))),
            **_products(q.dtype),
        )
        total = total * fade + jnp.sum(weights, axis=-1)
        return new_peak, total, out * fade[..., None] + values


def _add_narrow(state, heads, k_pages, v_pages, grouping, spec):
    """Add the pages that few queries see, many pages at once, one query a pair."""
    work = grouping.narrow
    pairs = max(1, min(PAIR_TOKENS // k_pages.shape[2], work.page.size))

    def step(i, state):
        at = i * pairs + jnp.arange(pairs, dtype=jnp.int32)
        valid = at < work.num_pairs
        at = jnp.minimum(at, work.num_pairs - 1)
        page, query = work.page[at], work.query[at]
        q = heads[query]
        seen = _pair_mask(grouping, page, query, spec.window) & valid[:, None]
        k, v = (x[page].astype(q.dtype) for x in (k_pages, v_pages))
        partial = _attend_pairs(q, k, v, seen, spec)
        return _merge_pairs(state, partial, query, valid)

    return lax.fori_loop(0, (work.num_pairs + pairs - 1) // pairs, step, state)


def _pair_mask(grouping, page, query, window):
    """Return [J, P] bool, true for tokens of a pair's page that its query sees."""
    rank = query[:, None]
    seen = (grouping.slot_first[page] <= rank) & (rank < grouping.slot_end[page])
    if window is None:
        return seen
    position = grouping.query_position[query][:, None]
    return seen & (position - grouping.slot_position[page] < window)


def _attend_pairs(q, k, v, seen, spec):
    """Return the softmax of each pair: q [J, K, G, D] over k and v [J, K, P, D]."""
    batch = ((0, 1), (0, 1))
    scores = lax.dot_general(k, q, (((3,), (3,)), batch), **_products(q.dtype))
    scores = jnp.where(seen[:, None, None], spec(scores.swapaxes(2, 3)), MASKED)
    v = jnp.where(seen[:, None, :, None], v, 0)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    out = lax.dot_general(
        weights.astype(v.dtype),
        v,
        (((3,), (2,)), batch),
        **_products(q.dtype),
    )
    return peak, jnp.sum(weights, axis=-1), out


def _merge_pairs(state, partial, query, valid):
    """Merge partials [J, ...] into the state [Q, ...] of their queries.

    The sum over the pairs of a query is a product with a 0/1 matrix: a scatter is a
    serial loop on a CPU.
    """
    peak, total, out = state
    pair_peak, pair_total, pair_out = partial
    rows = jnp.arange(peak.shape[0], dtype=jnp.int32)
    owns = (rows[:, None] == query[None]) & valid[None]
    # A result that is not finite must not reach other queries through the product with
    # zeros below. Its query's peak becomes infinite, so that all of its state becomes
    # NaN, and its pairs count for none. (A maximum may lose NaN on a CPU.) A product
    # finds such results faster than a reduction does.
    tiny = jnp.full(pair_out.shape[-1], 1e-30)
    sound = jnp.isfinite(jnp.einsum("bkgd,d->bkg", pair_out, tiny) + pair_total)
    pair_peak = jnp.where(sound, pair_peak, jnp.inf)
    best = jnp.where(owns[:, :, None, None], pair_peak[None], MASKED)
    new_peak = jnp.maximum(peak, jnp.max(best, axis=1))
    fade = jnp.exp(peak - new_peak)
    weight = jnp.exp(jnp.minimum(pair_peak - new_peak[query], 0.0))
    counts = sound & ~jnp.isnan(weight)
    owns = owns.astype(jnp.float32)
    sum_pairs = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    pair_total = jnp.where(counts, pair_total * weight, 0.0)
    pair_out = jnp.where(counts[..., None], pair_out * weight[..., None], 0.0)
    total = total * fade + sum_pairs("qb,bkg->qkg", owns, pair_total)
    out = out * fade[..., None] + sum_pairs("qb,bkgd->qkgd", owns, pair_out)
    return new_peak, total, out


def _products(dtype):
    """Return a product's options: float32 results, no TF32 for float32 operands."""
    exact = lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return {"precision": exact, "preferred_element_type": jnp.float32}


def _gather_heads(pages, index):
    """Return pages [J] of [M, K, P, D] as [K, J * P, D], which the products want."""
    num_pages, num_kv_heads, page_size, head_dim = pages.shape
    flat = pages.reshape(num_pages * num_kv_heads, page_size, head_dim)
    head = jnp.arange(num_kv_heads, dtype=jnp.int32)
    rows = flat.at[index[None] * num_kv_heads + head[:, None]].get(
        mode="promise_in_bounds"
    )
    return rows.reshape(num_kv_heads, -1, head_dim)
