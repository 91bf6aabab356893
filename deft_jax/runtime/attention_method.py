"""How a decode step stores its tokens' KV and attends: over the tree, by default."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import Grouping, group
from deft_jax.attention.spec import AttentionSpec
from deft_jax.capacity import Capacity
from deft_jax.kv import pool as kv_pool
from deft_jax.kv.pool import LayerKV
from deft_jax.layers.qkv import QKV
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree

Pool = tuple[LayerKV, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What all layers of a step share.

    Attributes:
        grouping: what each query token of the step sees.
        slots: where these tokens are in the tree's pages.
        extra: what else a method needs, any pytree.
    """

    grouping: Grouping
    slots: Slots
    extra: Any = None


class AttentionMethod(Protocol):
    """Stores and attends. Hashable: it is static in the step."""

    @property
    def implementation(self) -> str | None:
        """Implementation that the layers run: one of `IMPLEMENTATIONS`, or None."""
        ...

    def create_pool(self, config, capacity: Capacity, dtype: jnp.dtype) -> Pool:
        """Return empty storage for the KV of every layer.

        Args:
            config: the model's; num_layers, num_kv_heads and head_dim are used.
            capacity: sizes of the engine.
            dtype: dtype of keys and values.
        """
        ...

    def plan(
        self, tree: Tree, slots: Slots, pool: Pool, previous_node: jax.Array | None
    ) -> tuple[StepPlan, Pool]:
        """Return what a step needs, once for all layers, and the pool.

        Args:
            tree: the forest after `append`.
            slots: where the query tokens are.
            pool: KV of each layer.
            previous_node: [B] int32, node that each row was at before the step, N for
                idle rows; None where prompts are read.
        """
        ...

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV
    ) -> tuple[jax.Array, LayerKV]:
        """Store the tokens' KV of a layer and attend to what they see.

        Args:
            plan: what `plan` returned for the step.
            heads: projections of the query tokens, in rank order.
            layer: storage of the layer.

        Returns:
            [Q, H, D] in rank order, and the storage with the tokens' KV.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TreeMethod:
    """KV in shared pages, read once for all queries that see it.

    Attributes:
        implementation: one of `IMPLEMENTATIONS`, or None for the best.
        spec: what attention computes; None for the usual scale, no window and no cap.
    """

    implementation: str | None = None
    spec: AttentionSpec | None = None

    def create_pool(self, config, capacity: Capacity, dtype: jnp.dtype) -> Pool:
        """Return the pages of the tree for every layer."""
        return kv_pool.create_pool(
            config.num_layers,
            capacity.pages,
            config.num_kv_heads,
            capacity.page_size,
            config.head_dim,
            dtype,
        )

    def plan(
        self, tree: Tree, slots: Slots, pool: Pool, previous_node: jax.Array | None
    ) -> tuple[StepPlan, Pool]:
        """Group the queries."""
        return StepPlan(group(tree, slots), slots), pool

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV
    ) -> tuple[jax.Array, LayerKV]:
        """Store the KV in the tree's pages and attend over the tree."""
        q, layer = append_pages(plan, heads, layer, self.implementation)
        with jax.named_scope("attention"):
            return self.attend_pages(q, layer, plan.grouping), layer

    def attend_pages(
        self, q: jax.Array, layer: LayerKV, grouping: Grouping
    ) -> jax.Array:
        """Return the attention [Q, H, D] of queries in rank order over a layer's pages.

        Args:
            q: [Q, H, D], rotated queries.
            layer: pages with the step's tokens.
            grouping: what each query sees.
        """
        spec = dataclasses.asdict(self.spec_for(q))
        options = {**spec, "implementation": self.implementation}
        return tree_attention(q, layer.k, layer.v, grouping, **options)[0]

    def spec_for(self, q: jax.Array) -> AttentionSpec:
        """Return what attention of queries [Q, H, D] computes."""
        return self.spec or AttentionSpec.plain(q.shape[-1])


def append_pages(
    plan: StepPlan, heads: QKV, layer: LayerKV, implementation: str | None
) -> tuple[jax.Array, LayerKV]:
    """Return rotated queries [Q, H, D], and the tree's pages with the tokens' KV."""
    order = plan.grouping.order
    page, slot = plan.slots.page[order], plan.slots.slot[order]
    with jax.named_scope("kv_write"):
        return heads.append(layer, page, slot, implementation)


def as_method(implementation: str | None | AttentionMethod) -> AttentionMethod:
    """Return the method itself, or the tree's with a named implementation."""
    if implementation is None or isinstance(implementation, str):
        return TreeMethod(implementation)
    return implementation
