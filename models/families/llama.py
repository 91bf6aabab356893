"""The Llama network in Flax NNX: layers unrolled, attention and gate as an argument.

Weight matrices are [input, output], and those that read the same activations are one
matrix: a decode step is bound by reading them, and fewer, larger products read faster.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from deft_jax.attention.device import device_of
from deft_jax.layers.ops import LayerOps
from deft_jax.layers.qkv import QKV
from deft_jax.pallas_kernels.rms_scale import rms_scaled

from ..checkpoints.weights import (
    LAYER_SOURCES,
    Progress,
    Read,
    read_weights,
    weight_shapes,
)
from ..config.config import LlamaConfig


class Layer(nnx.Module):
    """One transformer block: attention and SwiGLU, each behind an RMSNorm.

    The weights of the norms are multiplied into the matrices behind them, and what
    reads the products scales their rows.

    Attributes:
        qkv: [E, (H + 2 K) D], query, key and value projections side by side.
        out: [H D, E].
        gate_up: [E, 2 F], gate and up projections side by side.
        down: [F, E].
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, jax.Array]):
        self.config = config
        self.qkv = nnx.Param(weights["qkv"])
        self.out = nnx.Param(weights["out"])
        self.gate_up = nnx.Param(weights["gate_up"])
        self.down = nnx.Param(weights["down"])

    def __call__(self, x, cos, sin, cache, ops: LayerOps):
        """Send x [Q, E] through the block; return it and the layer's new cache."""
        config, eps = self.config, self.config.rms_eps
        heads = _project(x, self.qkv[...]).reshape(x.shape[0], -1, config.head_dim)
        qkv = QKV(x, heads, cos, sin, config.num_kv_heads, eps)
        mixed, cache = ops.attend(qkv, cache)
        x = x + mixed.reshape(x.shape[0], -1) @ self.out[...]
        gated = ops.swiglu(x, _project(x, self.gate_up[...]), eps)
        return x + gated @ self.down[...], cache


class Llama(nnx.Module):
    """A decoder-only transformer over query tokens in any order.

    Attributes:
        config: shape and constants.
        embedding: [V, E], or None where the head is tied.
        layers: the blocks.
        norm: [E], final RMSNorm.
        head: [E, V].
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, jax.Array]):
        """Wrap weights that are on the device, by the names of `weight_shapes`."""
        self.config = config
        tied = config.tie_embeddings
        self.embedding = None if tied else nnx.Param(weights["embedding"])
        self.layers = nnx.List(
            Layer(
                config,
                {name: weights[f"layers.{index}.{name}"] for name in LAYER_SOURCES},
            )
            for index in range(config.num_layers)
        )
        self.norm = nnx.Param(weights["norm"])
        self.head = nnx.Param(weights["head"])

    @classmethod
    def from_checkpoint(
        cls,
        config: LlamaConfig,
        read: Read,
        dtype: jnp.dtype,
        progress: Progress | None = None,
    ) -> "Llama":
        """Build the network from tensors read a few at a time.

        Args:
            config: shape and constants of the checkpoint.
            read: gives a tensor by its Hugging Face name; called from `READERS`
                threads.
            dtype: dtype of the weights: float32, bfloat16 or float16.
            progress: called with the weights placed so far and their number.
        """
        return cls(config, read_weights(config, read, jnp.dtype(dtype), progress))

    @classmethod
    def random(
        cls, config: LlamaConfig, seed: int, dtype: jnp.dtype = jnp.bfloat16
    ) -> "Llama":
        """Make a network of any shape with random weights, on the device.

        Args:
            config: any, also a published shape of `SHAPES`.
            seed: number that the weights follow from.
            dtype: dtype of the weights.
        """
        shapes = weight_shapes(config)
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        weights = {
            name: _random_weight(key, shape, jnp.dtype(dtype))
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return cls(config, weights)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weights and activations."""
        return self.head[...].dtype

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        caches: tuple,
        ops: LayerOps,
    ) -> tuple[jax.Array, tuple]:
        """Return the final hidden states of query tokens.

        Args:
            tokens: [Q] int32.
            positions: [Q] int32, positions along each token's path.
            caches: one per layer, given to `ops.attend` and returned as it gave them.
            ops: what the layers call besides products.

        Returns:
            [Q, E] hidden states, normed, for `logits`; and the new caches.
        """
        x = self._embed(tokens)
        cos, sin = rotary_tables(self.config, positions)
        new_caches = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = _run_layer(layer, x, cos, sin, cache, ops)
            new_caches.append(cache)
        hidden = rms_norm(x, self.norm[...], self.config.rms_eps)
        return hidden, tuple(new_caches)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return the logits [Q, V] float32 of hidden states [Q, E]."""
        rows = hidden.shape[0]
        if rows == 1 and device_of(hidden).platform == "gpu":
            # A single row becomes a product of a matrix and a vector in float32, for
            # which XLA converts the whole head in every step.
            hidden = jnp.concatenate([hidden, hidden])
        logits = jnp.dot(hidden, self.head[...], preferred_element_type=jnp.float32)
        return logits[:rows]

    def _embed(self, tokens):
        if self.embedding is not None:
            return self.embedding[...][tokens]
        return self.head[...][:, tokens].T


@jax.jit(static_argnames="ops")
def _run_layer(layer: Layer, x, cos, sin, cache, ops: LayerOps):
    """Run a layer, traced and lowered once for all; the compiler inlines every call."""
    return layer(x, cos, sin, cache, ops)


def _project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Multiply x [Q, E] by weight [E, ...], before the scale of the norm.

    Without it float16 may be too narrow for the sums.
    """
    wide = jnp.float32 if x.dtype == jnp.float16 else x.dtype
    return jnp.dot(x, weight, preferred_element_type=wide)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Scale x [Q, E] to mean square 1 in float32 and by weight [E]; keep its dtype."""
    return rms_scaled(x, x, eps).astype(x.dtype) * weight[None]


def rotary_tables(
    config: LlamaConfig, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines [Q, D / 2] float32 of positions [Q]."""
    inverse = jnp.asarray(config.inverse_frequencies(), jnp.float32)
    angles = positions.astype(jnp.float32)[:, None] * inverse[None]
    return jnp.cos(angles), jnp.sin(angles)


@jax.jit(static_argnums=(1, 2))
def _random_weight(key, shape, dtype):
    """Draw weights with standard deviation 0.02, as Llamas begin; norms are 1."""
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
