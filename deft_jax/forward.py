"""The layers over query tokens that were just appended: one body for every step."""

from typing import Protocol

import jax

from deft_jax import kv_pool
from deft_jax.append import Slots
from deft_jax.grouping import Grouping, group
from deft_jax.tree import Tree
from deft_jax.tree_attention import tree_attention


class Model(Protocol):
    """What the decode step asks of a network; `deft_jax.models.llama.Llama` is one."""

    def __call__(self, tokens, positions, caches, attention, /) -> tuple: ...

    def logits(self, hidden: jax.Array, /) -> jax.Array: ...


def forward(
    model: Model,
    tree: Tree,
    pool: tuple[kv_pool.LayerKV, ...],
    slots: Slots,
    token: jax.Array,
    implementation: str | None,
) -> tuple[jax.Array, tuple[kv_pool.LayerKV, ...], Grouping]:
    """Runs the layers over query tokens that were just appended.

    Args:
        model: the network.
        tree: the forest after `append`.
        pool: KV of each layer.
        slots: of the query tokens.
        token: [Q] int32.
        implementation: of `tree_attention`.

    Returns:
        [Q, E] hidden states by row, the pool with the tokens' KV, and the grouping.
    """
    grouping = group(tree, slots)
    order = grouping.order
    page, slot = slots.page[order], slots.slot[order]

    def attention(q, k, v, layer):
        layer = kv_pool.write(layer, page, slot, k, v)
        out, _ = tree_attention(
            q, layer.k, layer.v, grouping, implementation=implementation
        )
        return out, layer

    hidden, pool = model(token[order], grouping.query_position, pool, attention)
    return hidden[grouping.rank], pool, grouping
