"""Choosing the next token of every branch on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.sampling.noise import exponential
from deft_jax.sampling.params import SamplingRows
from deft_jax.sampling.truncation import truncated_weights
from deft_jax.sampling.vocab_search import argmax, race, top_k


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The chosen tokens.

    Attributes:
        token: [B] int32, token ids.
        logprob: [B] float32, log-softmax of the model's own logits at `token`, before
            bias, penalty, temperature and truncation; natural logarithm.
    """

    token: jax.Array
    logprob: jax.Array


def sample(
    logits: jax.Array,
    rows: SamplingRows,
    key: jax.Array,
    position: jax.Array,
    seen: Callable[[], jax.Array],
    counts: Callable[[], jax.Array],
) -> Sampled:
    """Choose one token per row.

    In this order: logit bias, repetition penalty, frequency and presence penalty,
    temperature, top-k, top-p, min-p (`truncation.truncated_weights`), one draw. A row
    of temperature 0 takes the largest logit after bias and penalties, the lowest id on
    ties. One trace serves all settings, and a step costs only what some row of it asks
    for.

    The draw is a function of the row's logits, parameters, `key` and `position` alone.
    Where other rows, or their number, change the order in which the compiler adds up
    float32 numbers, logits differ in their last bits; that changes a draw only where
    two tokens, or two blocks of 256, come within as many bits of a tie (`race`), or
    where a token is as near to the boundary of a truncation.

    A logit of NaN counts as -inf and +inf as the largest float32. A row with no
    finite logit gives token 0, one with NaN or +inf a logprob of NaN.

    Args:
        logits: [B, V] float32, as the model gives them.
        rows: parameters of the B rows.
        key: [B] uint32, key of each row's branch.
        position: [B] int32, tokens generated on the path so far.
        seen: gives [B, V] bool, true for tokens on the path of a row; called only
            where some row has a repetition penalty.
        counts: gives [B, V] int32, how often each token was generated on the path of a
            row; called only where some row has a presence or frequency penalty.
    """
    adjusted = _without_nan(_adjust(logits, rows, seen, counts))
    greedy = argmax(adjusted)
    is_random = rows.temperature > 0

    def draw() -> jax.Array:
        weights = truncated_weights(_tempered(adjusted, greedy, rows), rows)
        names = (x[:, None] for x in (rows.seed, key, position))
        drawn = race(weights, functools.partial(exponential, *names))
        return jnp.where(is_random, drawn, greedy)

    token = lax.cond(jnp.any(is_random), draw, lambda: greedy)
    return Sampled(token=token, logprob=_log_softmax_at(logits, token))


def sample_greedily(logits: jax.Array) -> Sampled:
    """Choose as `sample` does where all rows are neutral and of temperature 0."""
    token = argmax(_without_nan(logits))
    return Sampled(token=token, logprob=_log_softmax_at(logits, token))


def is_greedy(rows: SamplingRows, vocab_size: int) -> jax.Array:
    """Return [] bool: whether all rows are neutral and of temperature 0."""
    has_bias = jnp.any(rows.bias_token < vocab_size)
    has_penalty = jnp.any(_has_repetition(rows) | _has_counted(rows))
    return ~(has_bias | has_penalty | jnp.any(rows.temperature > 0))


def top_logprobs(logits: jax.Array, num_top: int) -> tuple[jax.Array, jax.Array]:
    """Return the most likely tokens of each row under the model's own distribution.

    A token that `sample` takes has the same log-probability there, to the bit.

    Args:
        logits: [B, V] float32, as the model gives them.
        num_top: `K`, static, at most 64; places beyond the vocabulary get tokens that
            it has not, and -inf.

    Returns:
        [B, K] int32 tokens, by falling logit, the lowest id first on ties, and [B, K]
        float32 natural log-probabilities.
    """
    value, token = top_k(_without_nan(logits), num_top)
    peak, log_total = _normaliser(logits)
    return token, value - peak[:, None] - log_total[:, None]


def _has_repetition(rows: SamplingRows) -> jax.Array:
    return rows.repetition_penalty != 1


def _has_counted(rows: SamplingRows) -> jax.Array:
    """Return [B] bool, the rows with a penalty on what was generated."""
    return (rows.presence_penalty != 0) | (rows.frequency_penalty != 0)


def _adjust(
    logits: jax.Array,
    rows: SamplingRows,
    seen: Callable[[], jax.Array],
    counts: Callable[[], jax.Array],
) -> jax.Array:
    """Return the logits after bias and penalties, [B, V] float32."""

    def biased() -> jax.Array:
        row = jnp.arange(logits.shape[0])[:, None]
        return logits.at[row, rows.bias_token].add(rows.bias_value, mode="drop")

    has_bias = jnp.any(rows.bias_token < logits.shape[1])
    logits = lax.cond(has_bias, biased, lambda: logits)
    # One condition where nobody has a penalty, however many kinds there are.
    return lax.cond(
        jnp.any(_has_repetition(rows) | _has_counted(rows)),
        lambda logits: _penalised(logits, rows, seen, counts),
        lambda same: same,
        logits,
    )


def _penalised(
    logits: jax.Array,
    rows: SamplingRows,
    seen: Callable[[], jax.Array],
    counts: Callable[[], jax.Array],
) -> jax.Array:
    def weakened(logits: jax.Array) -> jax.Array:
        penalty = rows.repetition_penalty[:, None]
        weak = jnp.where(logits > 0, logits / penalty, logits * penalty)
        return jnp.where(seen(), weak, logits)

    def lowered(logits: jax.Array) -> jax.Array:
        count = counts()
        often = rows.frequency_penalty[:, None] * count.astype(jnp.float32)
        once = jnp.where(count > 0, rows.presence_penalty[:, None], 0.0)
        return logits - often - once

    for has, change in [(_has_repetition, weakened), (_has_counted, lowered)]:
        logits = lax.cond(jnp.any(has(rows)), change, lambda same: same, logits)
    return logits


def _without_nan(logits: jax.Array) -> jax.Array:
    largest = jnp.finfo(logits.dtype).max
    return jnp.where(jnp.isnan(logits), -jnp.inf, jnp.minimum(logits, largest))


def _tempered(logits: jax.Array, greedy: jax.Array, rows: SamplingRows) -> jax.Array:
    """Return [B, V] float32: logits over temperature; the largest of a row is 0."""
    peak = _at(logits, greedy)
    peak = jnp.where(peak == -jnp.inf, 0.0, peak)
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    return (logits - peak[:, None]) / temperature[:, None]


def _log_softmax_at(logits: jax.Array, token: jax.Array) -> jax.Array:
    peak, log_total = _normaliser(logits)
    return _at(logits, token) - peak - log_total


def _normaliser(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return [B] each: the largest logit, and the log of the sum relative to it."""
    peak = logits.max(axis=-1)
    return peak, jnp.log(jnp.exp(logits - peak[:, None]).sum(axis=-1))


def _at(logits: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
