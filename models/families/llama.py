"""The Llama network in Flax NNX: layers unrolled, attention and gate as an argument.

Weight matrices are [input, output], and those that read the same activations are one
matrix: a decode step is bound by reading them, and fewer, larger products read faster.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from deft_jax.attention.device import device_of
from deft_jax.attention.spec import AttentionSpec, Heads
from deft_jax.layers.linear import Dense, Linear, doubled
from deft_jax.layers.ops import FULL, LayerOps
from deft_jax.layers.qkv import QKV
from deft_jax.pallas_kernels.rms_scale import rms_scaled

from ..checkpoints.weights import (
    LAYER_BIASES,
    LAYER_SOURCES,
    Progress,
    Read,
    read_weights,
    weight_shapes,
)
from ..config.config import LlamaConfig

SLIDING = "sliding_attention"
"""Kind of the layers that see `LlamaConfig.sliding_window` tokens of their path."""


class Layer(nnx.Module):
    """One transformer block: attention and SwiGLU, each behind an RMSNorm.

    The weights of the norms are multiplied into the matrices behind them, and what
    reads the products scales their rows; where a bias follows, the layer scales them
    itself.

    Attributes:
        config: shape and constants.
        kind: the layer's name in `Llama.attention_specs`.
        qkv: [E, (H + 2 K) D], query, key and value projections side by side.
        out: [H D, E], output projection of the attention.
        gate_up: [E, 2 F], gate and up projections side by side.
        down: [F, E], down projection of the SwiGLU.
    """

    def __init__(
        self, config: LlamaConfig, weights: Mapping[str, jax.Array], kind: str = FULL
    ):
        """Wrap the weights of a layer.

        Args:
            config: shape and constants.
            weights: arrays by the names of the attributes; biases may be absent.
            kind: the layer's name in `Llama.attention_specs`.
        """
        self.config = config
        self.kind = kind
        self.qkv = _dense(weights, "qkv")
        self.out = _dense(weights, "out")
        self.gate_up = _dense(weights, "gate_up")
        self.down = _dense(weights, "down")

    def __call__(self, x, cos, sin, cache, ops: LayerOps):
        """Take x [Q, E] through the block; return it and the layer's new cache."""
        config = self.config
        inputs, heads, eps = _projected(x, self.qkv, config.rms_eps)
        heads = heads.reshape(x.shape[0], -1, config.head_dim)
        qkv = QKV(inputs, heads, cos, sin, config.num_kv_heads, eps)
        mixed, cache = ops.attend(qkv, cache, self.kind)
        x = x + self.out(mixed.reshape(x.shape[0], -1))
        inputs, hidden, eps = _projected(x, self.gate_up, config.rms_eps)
        gated = ops.swiglu(inputs, hidden, eps)
        return x + self.down(gated), cache


def _dense(weights: Mapping[str, jax.Array], name: str) -> Dense:
    return Dense(weights[name], weights.get(f"{name}_bias"))


class Llama(nnx.Module):
    """A decoder-only transformer over query tokens in any order.

    Attributes:
        config: shape and constants.
        embedding: [V, E], or None where the head is tied.
        layers: the blocks.
        norm: [E], weight of the final RMSNorm.
        head: [E, V], output head; a tied one is the embedding too.
        activation_dtype: type of the activations; None for that of the weights.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, jax.Array],
        activation_dtype: jax.typing.DTypeLike | None = None,
    ):
        """Wrap weights that are on the device.

        Args:
            config: shape and constants.
            weights: arrays by the names of `weight_shapes`.
            activation_dtype: type of the activations; by default that of the weights.
        """
        self.config = config
        self.activation_dtype: jnp.dtype | None = None
        if activation_dtype is not None:
            self.activation_dtype = jnp.dtype(activation_dtype)
        tied = config.tie_embeddings
        self.embedding = None if tied else nnx.Param(weights["embedding"])
        self.layers = nnx.List(
            Layer(
                config,
                {
                    name: weights[f"layers.{index}.{name}"]
                    for name in (*LAYER_SOURCES, *LAYER_BIASES)
                    if f"layers.{index}.{name}" in weights
                },
                SLIDING if index in config.sliding_layers else FULL,
            )
            for index in range(config.num_layers)
        )
        self.norm = nnx.Param(weights["norm"])
        self.head = Dense(weights["head"])

    @classmethod
    def from_checkpoint(
        cls,
        config: LlamaConfig,
        read: Read,
        dtype: jnp.dtype,
        progress: Progress | None = None,
        activation_dtype: jnp.dtype | None = None,
    ) -> "Llama":
        """Build the network from tensors read a few at a time.

        Args:
            config: shape and constants.
            read: gives a tensor by its Hugging Face name; called from `READERS`
                threads.
            dtype: type of the weights: float32, bfloat16 or float16.
            progress: called with the weights placed so far and their number.
            activation_dtype: type of the activations; by default that of the weights.
        """
        weights = read_weights(config, read, jnp.dtype(dtype), progress)
        return cls(config, weights, activation_dtype)

    @classmethod
    def random(
        cls,
        config: LlamaConfig,
        seed: int,
        dtype: jnp.dtype = jnp.bfloat16,
        activation_dtype: jnp.dtype | None = None,
    ) -> "Llama":
        """Make a network of any shape with random weights on the device.

        Args:
            config: shape of the network, maybe one of `SHAPES`.
            seed: number that the weights follow from.
            dtype: type of the weights.
            activation_dtype: type of the activations; by default that of the weights.
        """
        shapes = weight_shapes(config)
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        weights = {
            name: jnp.zeros(shape, dtype)
            if name.endswith("_bias")
            else _random_weight(key, shape, jnp.dtype(dtype))
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return cls(config, weights, activation_dtype)

    @property
    def dtype(self) -> jnp.dtype:
        """Type of activations and hidden states, and of KV unless it has its own."""
        return self.activation_dtype or self.head.dtype

    @property
    def attention_specs(self) -> dict[str, AttentionSpec]:
        """What the layers of each kind attend to: the whole path, or a window of it."""
        config, windows = self.config, {FULL: None, SLIDING: self.config.sliding_window}
        heads = Heads(config.num_q_heads, config.num_kv_heads, config.head_dim)
        kinds = sorted({layer.kind for layer in self.layers})
        return {
            kind: AttentionSpec.create(heads, self.dtype, window=windows[kind])
            for kind in kinds
        }

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        caches: tuple,
        ops: LayerOps,
    ) -> tuple[jax.Array, tuple]:
        """Return the final hidden states of query tokens.

        Args:
            tokens: [Q] int32, the query tokens.
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
        """Return [Q, V] float32 logits of [Q, E] hidden states."""
        rows = hidden.shape[0]
        if device_of(hidden).platform == "gpu":
            hidden = doubled(hidden)
        return self.head.products(hidden, jnp.float32)[:rows]

    def _embed(self, tokens):
        if self.embedding is not None:
            return self.embedding[...][tokens].astype(self.dtype)
        return self.head.columns(tokens, self.dtype)


@jax.jit(static_argnames="ops")
def _run_layer(layer: Layer, x, cos, sin, cache, ops: LayerOps):
    """Run a layer; all are traced and lowered once, and the compiler inlines each."""
    return layer(x, cos, sin, cache, ops)


def _projected(
    x: jax.Array, linear: Linear, eps: float
) -> tuple[jax.Array, jax.Array, float]:
    """Multiply x [Q, E] by the weights of a linear layer behind an RMSNorm.

    Returns:
        What the reader of the products gets: the rows whose root mean square is still
        to be divided by, the products, and the number added to the mean square. A bias
        is added after that division; so rows of ones stand for one that is done.
    """
    # Before the scale of the norm float16 may be too narrow for the sums.
    wide = jnp.float32 if x.dtype == jnp.float16 else x.dtype
    products = linear.products(x, wide)
    if linear.bias is None:
        return x, products, eps
    bias = linear.bias[...].astype(jnp.float32)
    return jnp.ones_like(x), rms_scaled(products, x, eps) + bias[None], 0.0


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Scale x [Q, E] to mean square 1 in float32, then by weight [E]; keep dtype."""
    return rms_scaled(x, x, eps).astype(x.dtype) * weight.astype(x.dtype)[None]


def rotary_tables(
    config: LlamaConfig, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines [Q, D / 2] float32 of positions [Q]."""
    inverse = jnp.asarray(config.inverse_frequencies(), jnp.float32)
    angles = positions.astype(jnp.float32)[:, None] * inverse[None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    factor = config.rope_attention_factor
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


@jax.jit(static_argnums=(1, 2))
def _random_weight(key, shape, dtype):
    """Draw a matrix with standard deviation 0.02, as Llamas are initialised.

    A vector is a norm and 1; `Llama.random` makes biases 0.
    """
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
