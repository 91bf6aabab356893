"""Top-k, top-p and min-p without a sort.

A sort of 49152 logits costs 5 ms a row on a CPU core. What a truncation needs is one
number, the lowest value it keeps, and bisection over the ordered bits of float32 finds
it in at most 31 sums over the row, however flat the distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.sampling.params import SamplingRows
from deft_jax.sampling.vocab_search import inverse_cdf

# Keys are integers in the order of the floats they stand for.
KEY_OF_MINUS_INF = -0x7F800001
KEY_OF_ZERO = 0
KEY_OF_ONE = 0x3F800000


class Cut(NamedTuple):
    """What is kept of each row: values above a threshold, and the first of those at it.

    threshold: [B] float32.
    last_tie: [B] int32 id of the last token kept among those at the threshold.
    """

    threshold: jax.Array
    last_tie: jax.Array


class _Bracket(NamedTuple):
    """Keys of two values, [B] int32, and the weight at or above each, [B] float32.

    The weight reaches the goal at `low` and misses it at `high`.
    """

    low: jax.Array
    high: jax.Array
    low_weight: jax.Array
    high_weight: jax.Array


def truncated_weights(logits: jax.Array, rows: SamplingRows) -> jax.Array:
    """Unnormalised probabilities after top-k, then top-p, then min-p.

    Each works on what the one before it left, renormalised, as in Hugging Face
    Transformers. Top-k keeps exactly `top_k` tokens, top-p the smallest set of
    probability `top_p` or more and at least one token; where logits (top-k) or
    float32 probabilities (top-p) are equal, the lowest ids come first. Min-p keeps
    every token of at least `min_p` times the largest probability.

    Args:
      logits: [B, V] float32, tempered; the largest of each row is 0, or all are -inf.
      rows: parameters of the B rows.

    Returns:
      [B, V] float32 in [0, 1], 0 for a dropped token.
    """
    limited = (rows.top_k > 0) & (rows.top_k < logits.shape[1])
    cut = lax.cond(
        jnp.any(limited),
        lambda: _top_k_cut(logits, rows.top_k, limited),
        lambda: _keep_all(logits),
    )
    weights = jnp.where(_kept(logits, cut), jnp.exp(logits), 0.0)
    cut = lax.cond(
        jnp.any(rows.top_p < 1),
        lambda: _top_p_cut(weights, rows.top_p),
        lambda: _keep_all(weights),
    )
    kept = _kept(weights, cut) & (weights >= rows.min_p[:, None])
    return jnp.where(kept, weights, 0.0)


def _keep_all(values: jax.Array) -> Cut:
    num_rows, vocab_size = values.shape
    return Cut(
        jnp.full(num_rows, -jnp.inf, jnp.float32),
        jnp.full(num_rows, vocab_size, jnp.int32),
    )


def _kept(values: jax.Array, cut: Cut) -> jax.Array:
    token = lax.broadcasted_iota(jnp.int32, values.shape, 1)
    threshold, last_tie = cut.threshold[:, None], cut.last_tie[:, None]
    return (values > threshold) | ((values == threshold) & (token <= last_tie))


def _top_k_cut(logits: jax.Array, top_k: jax.Array, limited: jax.Array) -> Cut:
    start = _bracket(KEY_OF_MINUS_INF, KEY_OF_ZERO, limited)
    return _find_cut(logits, jnp.ones_like, top_k.astype(jnp.float32), start)


def _top_p_cut(weights: jax.Array, top_p: jax.Array) -> Cut:
    start = _bracket(KEY_OF_ZERO, KEY_OF_ONE, top_p < 1)
    return _find_cut(
        weights, lambda weight: weight, top_p * weights.sum(axis=-1), start
    )


def _bracket(lowest: int, highest: int, limited: jax.Array) -> _Bracket:
    """From `lowest` to just past `highest`; empty for a row to keep whole."""
    low = jnp.full_like(limited, lowest, jnp.int32)
    high = jnp.where(limited, highest + 1, low)
    nothing = jnp.zeros_like(limited, jnp.float32)
    return _Bracket(low, high, nothing + jnp.inf, nothing)


def _find_cut(
    values: jax.Array,
    weight_of: Callable[[jax.Array], jax.Array],
    goal: jax.Array,
    start: _Bracket,
) -> Cut:
    """The fewest tokens, by falling value and rising id, that weigh `goal` or more.

    Args:
      values: [B, V] float32.
      weight_of: from values to weights, elementwise, not falling.
      goal: [B] float32, at most the weight of the row.
      start: where to look for the lowest value to keep.
    """

    def weight_from(threshold: jax.Array) -> jax.Array:
        kept = values >= threshold[:, None]
        return jnp.where(kept, weight_of(values), 0.0).sum(axis=-1)

    bracket = _bisect(weight_from, weight_of, goal, start)
    threshold = _from_key(bracket.low)
    weight = weight_of(threshold)
    is_one_value = bracket.high - bracket.low == 1
    too_many = is_one_value & (bracket.low_weight - weight >= goal)
    no_tie_dropped = jnp.full_like(bracket.low, values.shape[1])

    def last_tie() -> jax.Array:
        missing = jnp.ceil((goal - bracket.high_weight) / weight)
        last = _nth_true(values == threshold[:, None], jnp.maximum(missing, 1.0))
        return jnp.where(too_many, last, no_tie_dropped)

    last = lax.cond(jnp.any(too_many), last_tie, lambda: no_tie_dropped)
    return Cut(threshold, last)


def _bisect(
    weight_from: Callable[[jax.Array], jax.Array],
    weight_of: Callable[[jax.Array], jax.Array],
    goal: jax.Array,
    start: _Bracket,
) -> _Bracket:
    """Narrows the bracket of each row to one value, or to one token if that is sooner.

    A row that is done stays as it is, so what the others need does not change it.
    """

    def is_open(bracket: _Bracket) -> jax.Array:
        inside = bracket.low_weight - bracket.high_weight
        # Two weigh at least 2 of the lowest; the margin is for the rounding of sums.
        two_tokens = inside > 1.5 * weight_of(_from_key(bracket.low))
        return (bracket.high - bracket.low > 1) & two_tokens

    def halve(bracket: _Bracket) -> _Bracket:
        middle = bracket.low + (bracket.high - bracket.low) // 2
        weight = weight_from(_from_key(middle))
        raised = is_open(bracket) & (weight >= goal)
        lowered = is_open(bracket) & (weight < goal)
        return _Bracket(
            jnp.where(raised, middle, bracket.low),
            jnp.where(lowered, middle, bracket.high),
            jnp.where(raised, weight, bracket.low_weight),
            jnp.where(lowered, weight, bracket.high_weight),
        )

    return lax.while_loop(lambda bracket: jnp.any(is_open(bracket)), halve, start)


def _from_key(key: jax.Array) -> jax.Array:
    bits = jnp.where(key < 0, key ^ 0x7FFFFFFF, key)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _nth_true(mask: jax.Array, nth: jax.Array) -> jax.Array:
    """The index of the nth true value of a row, counted from 1."""
    weights = mask.astype(jnp.float32)
    # Half a step early, so that rounding cannot reach the one after.
    return inverse_cdf(weights, (nth - 0.5) / weights.sum(axis=-1))
