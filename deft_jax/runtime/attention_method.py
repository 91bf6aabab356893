"""How a decode step stores its tokens' KV and attends: over the tree, by default."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import Grouping, group
from deft_jax.attention.plan import AttentionPlan, plan_attention
from deft_jax.attention.spec import AttentionSpec, Heads
from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.kv import pool as kv_pool
from deft_jax.kv.pool import LayerKV
from deft_jax.layers.ops import FULL
from deft_jax.layers.qkv import QKV
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree

Pool = tuple[LayerKV, ...]

Specs = Mapping[str, AttentionSpec]
"""What the layers of a network attend to and how, by the name of their kind."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What all layers of a step share.

    Attributes:
        grouping: what each query token of the step sees.
        slots: where these tokens are in the pages, in rank order.
        attention: the plan of each kind of layer, by its name.
        extra: what else a method needs, any pytree.
    """

    grouping: Grouping
    slots: Slots
    attention: dict[str, AttentionPlan]
    extra: Any = None

    @classmethod
    def create(
        cls,
        grouping: Grouping,
        slots: Slots,
        attention: dict[str, AttentionPlan],
        extra: Any = None,
    ) -> "StepPlan":
        """Return the plan of a step whose slots are by row."""
        by_rank = jax.tree.map(lambda x: x[grouping.order], slots)
        return cls(grouping, by_rank, attention, extra)

    def of_kind(self, kind: str) -> AttentionPlan:
        """Return the plan of a kind of layer.

        Raises:
            DeftError: the network has not named that kind.
        """
        if kind not in self.attention:
            raise DeftError(
                f"a layer attends as kind {kind!r}; expected one of the network's "
                f"attention_specs: {', '.join(map(repr, self.attention))}"
            )
        return self.attention[kind]


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
        self,
        tree: Tree,
        slots: Slots,
        pool: Pool,
        previous_node: jax.Array | None,
        specs: Specs,
    ) -> tuple[StepPlan, Pool]:
        """Return what a step needs, once for all layers, and the pool.

        Args:
            tree: the forest after `append`.
            slots: where the query tokens are.
            pool: KV of each layer.
            previous_node: [B] int32, node that each row was at before the step, N for
                idle rows; None where prompts are read.
            specs: what each kind of layer attends to and how.
        """
        ...

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV, kind: str = FULL
    ) -> tuple[jax.Array, LayerKV]:
        """Store the tokens' KV of a layer and attend to what they see.

        Args:
            plan: what `plan` returned for the step.
            heads: projections of the query tokens, in rank order.
            layer: storage of the layer.
            kind: the layer's, a name out of `specs`.

        Returns:
            [Q, H, D] in rank order, and the storage with the tokens' KV.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TreeMethod:
    """KV in shared pages, read once for all queries that see it.

    Attributes:
        implementation: one of `IMPLEMENTATIONS`, or None for the best.
        kv_dtype: name of the dtype that keys and values are stored in; None for that
            of the activations. Another one needs float32 activations and "xla" or
            "reference": bfloat16 takes half the memory.
    """

    implementation: str | None = None
    kv_dtype: str | None = None

    def create_pool(self, config, capacity: Capacity, dtype: jnp.dtype) -> Pool:
        """Return the pages of the tree for every layer.

        Raises:
            DeftError: there is no such `kv_dtype`, or not under these activations.
        """
        heads = Heads(config.num_q_heads, config.num_kv_heads, config.head_dim)
        try:
            spec = AttentionSpec.create(heads, dtype, kv_dtype=self.kv_dtype)
        except ValueError as error:
            raise DeftError(str(error)) from None
        return kv_pool.create_pool(
            config.num_layers,
            capacity.pages,
            config.num_kv_heads,
            capacity.page_size,
            config.head_dim,
            jnp.dtype(spec.kv_dtype),
        )

    def plan(
        self,
        tree: Tree,
        slots: Slots,
        pool: Pool,
        previous_node: jax.Array | None,
        specs: Specs,
    ) -> tuple[StepPlan, Pool]:
        """Group the queries, and plan the attention of each kind of layer."""
        grouping = group(tree, slots)
        attention = plan_kinds(grouping, specs, self.implementation, pool)
        return StepPlan.create(grouping, slots, attention), pool

    def attend(
        self, plan: StepPlan, heads: QKV, layer: LayerKV, kind: str = FULL
    ) -> tuple[jax.Array, LayerKV]:
        """Store the KV in the tree's pages and attend over the tree."""
        q, layer = append_pages(plan, heads, layer, self.implementation)
        with jax.named_scope("attention"):
            out, _ = tree_attention(q, layer.k, layer.v, plan.of_kind(kind))
        return out, layer


def plan_kinds(
    grouping: Grouping, specs: Specs, implementation: str | None, pool: Pool
) -> dict[str, AttentionPlan]:
    """Return the plan of each kind of layer by its name, for KV as a pool has it."""
    return {
        kind: plan_attention(
            grouping,
            spec.with_kv_dtype(pool[0].dtype),
            implementation=implementation,
        )
        for kind, spec in specs.items()
    }


def append_pages(
    plan: StepPlan, heads: QKV, layer: LayerKV, implementation: str | None
) -> tuple[jax.Array, LayerKV]:
    """Return rotated queries [Q, H, D], and the tree's pages with the tokens' KV."""
    slots = plan.slots
    with jax.named_scope("kv_write"):
        return heads.append(layer, slots.page, slots.slot, implementation)


def as_method(implementation: str | None | AttentionMethod) -> AttentionMethod:
    """Return the method itself, or the tree's with a named implementation."""
    if implementation is None or isinstance(implementation, str):
        return TreeMethod(implementation)
    return implementation
