"""The layers over a step's query tokens: one body for every step."""

import functools
from typing import Protocol

import jax

from deft_jax.attention.grouping import Grouping
from deft_jax.layers.ops import LayerOps
from deft_jax.layers.swiglu import swiglu
from deft_jax.runtime.attention_method import AttentionMethod, Pool
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree


class Model(Protocol):
    """What the decode step asks of a network, such as `deft_jax.models`' Llama."""

    def __call__(self, tokens, positions, caches, ops, /) -> tuple: ...

    def logits(self, hidden: jax.Array, /) -> jax.Array: ...


def forward(
    model: Model,
    tree: Tree,
    pool: Pool,
    slots: Slots,
    token: jax.Array,
    method: AttentionMethod,
    before: jax.Array | None = None,
) -> tuple[jax.Array, Pool, Grouping]:
    """Run the layers over query tokens that were just appended.

    Args:
        model: the network.
        tree: the forest after `append`.
        pool: KV of each layer.
        slots: of the query tokens.
        token: [Q] int32.
        method: stores KV and attends.
        before: as in `AttentionMethod.plan`.

    Returns:
        [Q, E] hidden states by row, the pool with the tokens' KV, and the grouping.
    """
    with jax.named_scope("grouping"):
        plan, pool = method.plan(tree, slots, pool, before)
        grouping = plan.grouping

    ops = LayerOps(
        attend=functools.partial(method.attend, plan),
        swiglu=functools.partial(swiglu, implementation=method.implementation),
    )
    with jax.named_scope("layers"):
        order = grouping.order
        hidden, pool = model(token[order], grouping.query_position, pool, ops)
        return hidden[grouping.rank], pool, grouping
