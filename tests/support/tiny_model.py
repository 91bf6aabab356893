"""A tiny Llama with sharp logits, an ASCII tokenizer, and a decoder for one sequence.

The decoder knows dense attention over one sequence and nothing of trees, pages or
rows: what it gives is what every branch of a tree must give.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.layers.ops import FULL, LayerOps
from deft_jax.models.config.config import LlamaConfig
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import SLIDING, Llama
from deft_jax.models.tokenizers.detokenizer import Detokenizer
from deft_jax.sampling.draw import sample
from deft_jax.sampling.noise import ROOT_KEY, child_key
from deft_jax.sampling.params import Sampling, rows_for

EOS = (0, 1, 2, 3, 4, 5)
"""Several, so that random branches end at different lengths."""

CONFIG = dataclasses.replace(
    SHAPES["tiny"],
    vocab_size=128,
    head_dim=16,
    context_length=128,
    tie_embeddings=False,
    eos_token_ids=EOS,
)
CAPACITY = Capacity(requests=3, rows=16, nodes=96, pages=64, page_size=8, chunk=32)
"""Of all engines in tests, so that each strategy is compiled once."""

BIASES = 4


class AsciiTokenizer:
    """Every token is one ASCII character; those of `EOS` have no text."""

    eos_token_ids = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if not (skip_special_tokens and i in EOS))

    def stream(self, context: Sequence[int]) -> Detokenizer:
        return Detokenizer(lambda token: bytes([token]), skipped=EOS)


WINDOW_CONFIG = dataclasses.replace(
    CONFIG, num_layers=4, sliding_window=9, sliding_layers=frozenset({0, 2})
)
"""Layers of two kinds in turn; the window is longer than a page and ends within one."""


@functools.cache
def tiny_model(config: LlamaConfig = CONFIG) -> Llama:
    """Return random float32 weights, so large that positions and attention matter."""
    graph, state = nnx.split(Llama.random(config, seed=1, dtype=jnp.float32))
    scale = {"head": 20.0, "embedding": 50.0}

    def enlarge(path, x):
        return x if x.ndim == 1 else x * scale.get(path[0], 10.0)

    return nnx.merge(graph, nnx.map_state(enlarge, state))


@functools.cache
def tiny_engine() -> Engine:
    """Return one engine for all tests: each must leave it as it found it."""
    return Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY, prefix_cache=False)


@functools.cache
def sharing_engine() -> Engine:
    """Return one engine with a prefix cache, for tests of what outlives requests."""
    return Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)


class LoneSequence(NamedTuple):
    """What was generated for one sequence, and why it ended."""

    tokens: tuple[int, ...]
    logprobs: list[float]
    text: str
    finish_reason: str


def decode_alone(
    prompt: str | Sequence[int],
    sampling: Sampling,
    branch: int = 0,
    key: int = ROOT_KEY,
    config: LlamaConfig = CONFIG,
) -> LoneSequence:
    """Decode one sequence as branch number `branch` of a request with a key."""
    is_text = isinstance(prompt, str)
    prompt_ids = AsciiTokenizer().encode(prompt) if is_text else prompt
    tokens = np.zeros(CONFIG.context_length, np.int32)
    tokens[: len(prompt)] = prompt_ids
    end = min(len(prompt) + sampling.max_new_tokens, CONFIG.context_length)
    tokens, logprobs, length = jax.device_get(
        _decode(
            tiny_model(config),
            jnp.asarray(tokens),
            jnp.int32(len(prompt)),
            jnp.int32(end),
            jax.tree.map(jnp.asarray, rows_for([sampling], BIASES)),
            child_key(jnp.uint32(key), jnp.int32(branch)),
            jnp.asarray(_ends(sampling) or (-1,)),
        )
    )
    generated = tuple(tokens[len(prompt) : length].tolist())
    reason = "stop" if generated[-1] in _ends(sampling) else "length"
    logprobs = logprobs[len(prompt) : length].tolist()
    return _until_stop(generated, logprobs, reason, sampling.stop)


def _ends(sampling: Sampling) -> tuple[int, ...]:
    """Return the tokens that end a branch."""
    return (*(() if sampling.ignore_eos else EOS), *sampling.stop_token_ids)


def _until_stop(tokens, logprobs, reason, stops) -> LoneSequence:
    """Cut a sequence at the first token that completes a stop string."""
    text = ""
    for count in range(1, len(tokens) + 1):
        text = AsciiTokenizer().decode(tokens[:count], skip_special_tokens=True)
        begins = [text.find(stop) for stop in stops if stop in text]
        if begins:
            tokens, text, reason = tokens[:count], text[: min(begins)], "stop"
            break
    return LoneSequence(tokens, logprobs[: len(tokens)], text, reason)


@jax.jit
def _decode(model, tokens, prompt_length, end, rows, key, eos):
    """Return [L] tokens and log-probabilities, and how many tokens there are."""
    places = jnp.arange(tokens.shape[0])

    def grow(state):
        tokens, logprobs, length, _ = state
        written = jnp.where(places < length, tokens, CONFIG.vocab_size)
        seen = jnp.zeros(CONFIG.vocab_size, bool).at[written].set(True, mode="drop")
        logits = dense_logits(model, tokens)[length - 1]
        position = length - prompt_length
        behind = jnp.where(places >= prompt_length, written, CONFIG.vocab_size)
        counts = jnp.zeros(CONFIG.vocab_size, jnp.int32).at[behind].add(1, mode="drop")
        chosen = sample(
            logits[None],
            rows,
            key[None],
            position[None],
            lambda: seen[None],
            lambda: counts[None],
        )
        token = chosen.token[0]
        return (
            tokens.at[length].set(token),
            logprobs.at[length].set(chosen.logprob[0]),
            length + 1,
            jnp.any(token == eos),
        )

    def goes_on(state):
        return (state[2] < end) & ~state[3]

    start = (tokens, jnp.zeros(tokens.shape), prompt_length, jnp.bool_(False))
    return lax.while_loop(goes_on, grow, start)[:3]


def path_logprobs(tokens: Sequence[int]) -> np.ndarray:
    """Return [len(tokens), V] float64 log-probabilities of what follows each."""
    padded = np.zeros(CONFIG.context_length, np.int32)
    padded[: len(tokens)] = tokens
    logits = _dense_logits(tiny_model(), jnp.asarray(padded))[: len(tokens)]
    exact = np.asarray(logits, np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))


def dense_logits(model: Llama, tokens: jax.Array) -> jax.Array:
    """Return [L, V] float32 logits of the tokens that follow each of [L] tokens."""
    positions = jnp.arange(tokens.shape[0])
    caches = (None,) * model.config.num_layers
    windows = {FULL: None, SLIDING: model.config.sliding_window}
    attend = functools.partial(_causal_attention, windows)
    hidden, _ = model(tokens, positions, caches, LayerOps(attend))
    return model.logits(hidden)


_dense_logits = jax.jit(dense_logits)


def _causal_attention(windows, heads, cache, kind=FULL):
    """Attend from q [L, H, D] to k, v [L, K, D], in the plainest form.

    Token 5 sees the tokens 0 to 5, or with a window of 3 the tokens 3, 4 and 5.
    """
    q, k, v = heads.rotated()
    repeat = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, repeat, axis=1) for x in (k, v))
    logits = jnp.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
    seen = jnp.tril(jnp.ones(logits.shape[1:], bool))
    if windows[kind] is not None:
        seen &= ~jnp.tril(seen, -windows[kind])
    weights = jax.nn.softmax(jnp.where(seen[None], logits, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, v), cache
