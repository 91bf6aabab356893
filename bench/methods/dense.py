"""`medusa`: attention over the whole tree under one dense mask, KV unpaged."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.attention.grouping import group
from deft_jax.attention.spec import Logits
from deft_jax.capacity import Capacity
from deft_jax.kv.pool import LayerKV
from deft_jax.layers.ops import FULL
from deft_jax.layers.qkv import QKV
from deft_jax.runtime.attention_method import Pool, Specs, StepPlan
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree


@dataclasses.dataclass(frozen=True)
class DenseMethod:
    """Every query times every cached token, in plain products and a softmax.

    Logits, mask and weights go through memory (Cai et al., arXiv 2401.10774). A layer's
    storage is `k, v: [K, M * P, D]`, the tree's slots one behind the other.

    Attributes:
        implementation: what runs beside the attention; None for the best.
    """

    implementation: str | None = None

    def create_pool(self, config, capacity: Capacity, dtype: jnp.dtype) -> Pool:
        """Return room for the tree's slots."""
        slots = capacity.pages * capacity.page_size
        shape = (config.num_kv_heads, slots, config.head_dim)
        return tuple(
            LayerKV(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))
            for _ in range(config.num_layers)
        )

    def plan(
        self,
        tree: Tree,
        slots: Slots,
        pool: Pool,
        previous_node: jax.Array | None,
        specs: Specs,
    ) -> tuple[StepPlan, Pool]:
        """Make the mask [Q, M * P], true where a query sees a token."""
        grouping = group(tree, slots)
        rank = jnp.arange(grouping.num_queries, dtype=jnp.int32)[:, None]
        first, end = (
            grouping.slot_first.reshape(1, -1),
            grouping.slot_end.reshape(1, -1),
        )
        mask = (first <= rank) & (rank < end)
        return StepPlan.create(grouping, slots, {}, extra=mask), pool

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV, kind: str = FULL
    ) -> tuple[jax.Array, LayerKV]:
        """Attend to all slots under the mask."""
        q, k, v = heads.rotated()
        layer = _write(plan, k, v, layer)
        with jax.named_scope("attention"):
            return _attend(q, layer, plan.extra), layer


def _write(plan: StepPlan, k, v, layer: LayerKV) -> LayerKV:
    slots = plan.slots
    page_size = plan.grouping.slot_first.shape[1]
    # Idle rows have a page past the last, which is dropped.
    at = slots.page * page_size + slots.slot

    def put(pool, rows):
        rows = rows.astype(pool.dtype).swapaxes(0, 1)
        return pool.at[:, at].set(rows, mode="drop", unique_indices=True)

    with jax.named_scope("kv_write"):
        return LayerKV(k=put(layer.k, k), v=put(layer.v, v))


def _attend(q: jax.Array, layer: LayerKV, mask: jax.Array) -> jax.Array:
    """Return the attention [Q, H, D]; a query that sees nothing gets zeros."""
    heads = q.reshape(q.shape[0], layer.k.shape[0], -1, q.shape[2])
    spec = Logits.plain(q.shape[2])
    scores = jnp.einsum(
        "qkgd,ksd->kgqs", heads, layer.k, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[None, None], spec(scores), -jnp.inf)
    peak = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0.0, peak))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights / jnp.where(total == 0, 1.0, total)).astype(q.dtype)
    out = jnp.einsum(
        "kgqs,ksd->qkgd", weights, layer.v, preferred_element_type=jnp.float32
    )
    return out.reshape(q.shape).astype(q.dtype)
