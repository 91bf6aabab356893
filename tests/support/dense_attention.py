"""A Llama over one sequence, with a cache that knows nothing of trees or pages."""

import jax
import jax.numpy as jnp

from deft_jax.layers.ops import FULL, LayerOps
from deft_jax.layers.qkv import QKV
from deft_jax.models.config.config import LlamaConfig
from deft_jax.models.families.llama import Llama

Cache = dict[str, jax.Array]
"""`k` and `v` of one layer, [T, K, D] each, of the T tokens so far."""


def empty_caches(config: LlamaConfig, dtype: jnp.dtype) -> tuple[Cache, ...]:
    """Return one cache per layer, without tokens."""
    empty = jnp.zeros((0, config.num_kv_heads, config.head_dim), dtype)
    return tuple({"k": empty, "v": empty} for _ in range(config.num_layers))


def dense_attention(
    heads: QKV, cache: Cache, kind: str = FULL
) -> tuple[jax.Array, Cache]:
    """Attend causally from Q tokens that follow the T tokens of the cache.

    All layers are of the kind `FULL`. Computes in float32; the output [Q, H, D] has the
    dtype of q.
    """
    assert kind == FULL
    q, k, v = heads.rotated()
    cache = {"k": jnp.append(cache["k"], k, 0), "v": jnp.append(cache["v"], v, 0)}
    num_queries, num_heads, head_dim = q.shape
    groups = q.reshape(num_queries, k.shape[1], num_heads // k.shape[1], head_dim)
    groups, keys, values = (
        x.astype(jnp.float32) for x in (groups, cache["k"], cache["v"])
    )
    scores = jnp.einsum("qkgd,tkd->kgqt", groups, keys) / head_dim**0.5
    seen = jnp.tri(num_queries, len(keys), len(keys) - num_queries, dtype=bool)
    shares = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("kgqt,tkd->qkgd", shares, values)
    return out.reshape(q.shape).astype(q.dtype), cache


@jax.jit
def _step(model, tokens, positions, caches):
    hidden, caches = model(tokens, positions, caches, LayerOps(dense_attention))
    return model.logits(hidden), caches


def dense_logits(
    model: Llama, tokens: jax.Array, *, chunk: int | None = None
) -> jax.Array:
    """Return [T, V] float32 logits of [T] tokens, fed `chunk` at a time or at once."""
    caches, logits = empty_caches(model.config, model.dtype), []
    for first in range(0, len(tokens), chunk or len(tokens)):
        part = tokens[first : first + (chunk or len(tokens))]
        positions = first + jnp.arange(len(part))
        step, caches = _step(model, part, positions, caches)
        logits.append(step)
    return jnp.concatenate(logits)
