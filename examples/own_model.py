"""Decode trees with a network of your own: a small GPT in plain JAX.

    python examples/own_model.py

The engine asks little of a network, and nothing of its base class. It must be a pytree
whose leaves are its weights, with

* `config`: `vocab_size`, `context_length`, `hidden_size`, `num_layers`, `num_q_heads`,
  `num_kv_heads` and `head_dim`,
* `dtype`: type of activations and cached keys and values,
* `model(tokens, positions, caches, ops)`: hidden states of query tokens, which
  come in any order and from many branches; `attention(heads, cache)` stores keys and
  values of a layer and returns what the queries read,
* `model.logits(hidden)`: float32 logits.

A tokenizer needs `encode`, `decode`, `stream` and `eos_token_ids`. The weights here are
random, so the text is noise; what the tree shares is real.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deft_jax import BestOfN, Engine, Sampling
from deft_jax.layers.qkv import QKV
from deft_jax.models.tokenizers.detokenizer import Detokenizer

PROMPT = "once upon a time"
ALPHABET = "\0abcdefghijklmnopqrstuvwxyz ,.'"
"""Characters by their token ids; the first ends a text."""


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Shape of the network; the names are those that the engine reads.

    Attributes:
        vocab_size: V.
        context_length: positions that a sequence may have at most.
        hidden_size: E.
        num_layers: L.
        num_q_heads: H.
        num_kv_heads: K, here the same as H.
        head_dim: D.
    """

    vocab_size: int = len(ALPHABET)
    context_length: int = 256
    hidden_size: int = 64
    num_layers: int = 2
    num_q_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 16


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights"],
    meta_fields=["config"],
)
@dataclasses.dataclass(frozen=True)
class GPT:
    """A GPT: LayerNorm, learned positions, GELU; all weights in one dictionary.

    Attributes:
        config: shape of the network, static.
        weights: arrays by name; those of a layer begin with its number.
    """

    config: GPTConfig
    weights: dict[str, jax.Array]

    @classmethod
    def random(cls, config: GPTConfig, seed: int) -> "GPT":
        """Draw all weights of a network."""
        E, V = config.hidden_size, config.vocab_size
        width = (config.num_q_heads + 2 * config.num_kv_heads) * config.head_dim
        shapes = {"embedding": (V, E), "position": (config.context_length, E)}
        shapes["head"] = (E, V)
        for index in range(config.num_layers):
            shapes[f"{index}.qkv"] = (E, width)
            shapes[f"{index}.out"] = (config.num_q_heads * config.head_dim, E)
            shapes[f"{index}.up"] = (E, 4 * E)
            shapes[f"{index}.down"] = (4 * E, E)
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        weights = {
            name: jax.random.normal(key, shape) * 2 / shape[0] ** 0.5
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return cls(config, weights)

    @property
    def dtype(self) -> jnp.dtype:
        """Type of activations and cached keys and values."""
        return self.weights["embedding"].dtype

    def __call__(self, tokens, positions, caches, ops):
        """Return hidden states [Q, E] of query tokens [Q], and the new caches."""
        x = self.weights["embedding"][tokens] + self.weights["position"][positions]
        new_caches = []
        for index, cache in enumerate(caches):
            x, cache = self._block(index, x, cache, ops)
            new_caches.append(cache)
        return layer_norm(x), tuple(new_caches)

    def _block(self, index, x, cache, ops):
        qkv, out, up, down = (
            self.weights[f"{index}.{name}"] for name in ("qkv", "out", "up", "down")
        )
        num_queries, D = x.shape[0], self.config.head_dim
        heads = (layer_norm(x) @ qkv).reshape(num_queries, -1, D)
        # Rows of ones: nothing is left to be scaled. Angles of 0: nothing is rotated.
        projected = QKV(
            inputs=jnp.ones_like(x),
            heads=heads,
            cos=jnp.ones((num_queries, D // 2)),
            sin=jnp.zeros((num_queries, D // 2)),
            num_kv_heads=self.config.num_kv_heads,
            eps=0.0,
        )
        mixed, cache = ops.attend(projected, cache)
        x = x + mixed.reshape(num_queries, -1) @ out
        return x + jax.nn.gelu(layer_norm(x) @ up) @ down, cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return [Q, V] float32 logits of hidden states [Q, E]."""
        return hidden @ self.weights["head"]


def layer_norm(x: jax.Array) -> jax.Array:
    """Scale rows [Q, E] to mean 0 and variance 1."""
    return jax.nn.standardize(x, axis=-1)


class CharacterTokenizer:
    """A tokenizer whose tokens are the characters of `ALPHABET`."""

    eos_token_ids = (0,)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return [ALPHABET.index(character) for character in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""
        ends = self.eos_token_ids if skip_special_tokens else ()
        return "".join(ALPHABET[i] for i in ids if i not in ends)

    def stream(self, context: Sequence[int]) -> Detokenizer:
        """Return what turns tokens into text one by one, after those of a context."""
        return Detokenizer(
            lambda token: ALPHABET[token].encode(), skipped=self.eos_token_ids
        )


def main() -> None:
    """Grow four branches from one prompt and print the tree."""
    engine = Engine(GPT.random(GPTConfig(), seed=0), CharacterTokenizer())
    sampling = Sampling(temperature=0.7, max_new_tokens=24, seed=0)
    (tree,) = engine.generate(PROMPT, BestOfN(4), sampling)
    print(tree)
    print(f"the prompt's keys and values were stored once for {len(tree.leaves())}")


if __name__ == "__main__":
    main()
