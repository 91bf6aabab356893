"""The layers over a step's query tokens: one body for every step."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.spec import AttentionSpec, Heads
from deft_jax.layers.ops import FULL, LayerOps
from deft_jax.layers.swiglu import swiglu
from deft_jax.runtime.attention_method import AttentionMethod, Pool, Specs
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree


class ModelConfig(Protocol):
    """The sizes of a network that the engine uses."""

    @property
    def vocab_size(self) -> int:
        """`V`, token ids are below it."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its continuation together."""
        ...

    @property
    def hidden_size(self) -> int:
        """`E`, numbers of a hidden state."""
        ...

    @property
    def num_layers(self) -> int:
        """`L`."""
        ...

    @property
    def num_q_heads(self) -> int:
        """`H`, query heads."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """`K`, KV heads."""
        ...

    @property
    def head_dim(self) -> int:
        """`D`, numbers of a head."""
        ...


class Model(Protocol):
    """A network as the engine uses it, such as the Llama of `deft_jax.models`.

    It is a pytree of weights, since it is an argument of jitted functions. One whose
    layers do not all see their whole path with the usual scale has `attention_specs`
    too, an `AttentionSpec` for each kind of layer by a name of its own; each layer
    names its kind to `ops.attend`.
    """

    @property
    def config(self) -> ModelConfig:
        """The sizes of the network."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of activations, hidden states and KV."""
        ...

    def __call__(self, tokens, positions, caches, ops: LayerOps, /) -> tuple:
        """Run the layers.

        Args:
            tokens: [Q] int32, token ids.
            positions: [Q] int32, positions along each token's path.
            caches: one per layer, given to `ops.attend` and returned as it gave them.
            ops: what each layer calls to store KV and attend, and to gate its MLP.

        Returns:
            [Q, E] hidden states for `logits`, and the new caches.
        """
        ...

    def logits(self, hidden: jax.Array, /) -> jax.Array:
        """Return [B, V] float32 logits of hidden states [B, E]."""
        ...


def attention_specs(model: Model) -> Specs:
    """Return what each kind of a network's layers attends to and how.

    A network without `attention_specs` has one kind, `FULL`: softmax attention with
    the usual scale over the whole path.
    """
    specs = getattr(model, "attention_specs", None)
    if specs is not None:
        return specs
    config = model.config
    heads = Heads(config.num_q_heads, config.num_kv_heads, config.head_dim)
    return {FULL: AttentionSpec.create(heads, model.dtype)}


def forward(
    model: Model,
    tree: Tree,
    pool: Pool,
    slots: Slots,
    token: jax.Array,
    method: AttentionMethod,
    previous_node: jax.Array | None = None,
) -> tuple[jax.Array, Pool, Grouping]:
    """Run the layers over query tokens that were just appended.

    Args:
        model: the network.
        tree: the forest after `append`.
        pool: KV of each layer.
        slots: where the query tokens were put.
        token: [Q] int32, token ids.
        method: stores KV and attends.
        previous_node: [B] int32, node that each row was at before the step, N for idle
            rows; None where prompts are read.

    Returns:
        [Q, E] hidden states by row, the pool with the tokens' KV, and the grouping.
    """
    with jax.named_scope("grouping"):
        plan, pool = method.plan(
            tree, slots, pool, previous_node, attention_specs(model)
        )
        grouping = plan.grouping

    ops = LayerOps(
        attend=functools.partial(method.attend, plan),
        swiglu=functools.partial(swiglu, implementation=method.implementation),
    )
    with jax.named_scope("layers"):
        order = grouping.order
        hidden, pool = model(token[order], grouping.query_position, pool, ops)
        return hidden[grouping.rank], pool, grouping
