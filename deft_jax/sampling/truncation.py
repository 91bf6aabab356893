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


class Threshold(NamedTuple):
    """What is kept of each row: all above a value, and the first of those equal to it.

    Attributes:
        value: [B] float32, the least value that is kept.
        last_tie: [B] int32, id of the last token kept among those that have the value.
    """

    value: jax.Array
    last_tie: jax.Array


class _Bracket(NamedTuple):
    """Two values as keys, between which the lowest value to keep is looked for.

    Attributes:
        low: [B] int32, key of a value at or above which the weight reaches the goal.
        high: [B] int32, key of a larger one, where the weight misses the goal.
        low_weight: [B] float32, weight of all values at or above that of `low`.
        high_weight: [B] float32, weight of all values at or above that of `high`.
    """

    low: jax.Array
    high: jax.Array
    low_weight: jax.Array
    high_weight: jax.Array


def truncated_weights(logits: jax.Array, rows: SamplingRows) -> jax.Array:
    """Return unnormalised probabilities after top-k, then top-p, then min-p.

    Each works on what the one before it left, renormalised, as in Hugging Face
    Transformers. Top-k keeps exactly `top_k` tokens, top-p the smallest set of
    probability `top_p` or more and at least one token; where logits (top-k) or
    float32 probabilities (top-p) are equal, the lowest ids come first. Min-p keeps
    every token of at least `min_p` times the largest probability.

    The boundary of top-p is where a float32 sum reaches the goal, so that rounding may
    move it by a token if the running sum comes within about 1e-6 of the goal there. Of
    the boundaries of top-k and min-p it is the last bit of one logit that decides.

    Args:
        logits: [B, V] float32, tempered; the largest of each row is 0, or all are -inf.
        rows: parameters of the B rows.

    Returns:
        [B, V] float32 in [0, 1], 0 for a dropped token.
    """
    limited = (rows.top_k > 0) & (rows.top_k < logits.shape[1])
    threshold = lax.cond(
        jnp.any(limited),
        lambda: _top_k_threshold(logits, rows.top_k, limited),
        lambda: _keep_all(logits),
    )
    weights = jnp.where(_kept(logits, threshold), jnp.exp(logits), 0.0)
    threshold = lax.cond(
        jnp.any(rows.top_p < 1),
        lambda: _top_p_threshold(weights, rows.top_p),
        lambda: _keep_all(weights),
    )
    kept = _kept(weights, threshold) & (weights >= rows.min_p[:, None])
    return jnp.where(kept, weights, 0.0)


def _keep_all(values: jax.Array) -> Threshold:
    """Return the threshold that every value passes."""
    num_rows, vocab_size = values.shape
    return Threshold(
        jnp.full(num_rows, -jnp.inf, jnp.float32),
        jnp.full(num_rows, vocab_size, jnp.int32),
    )


def _kept(values: jax.Array, threshold: Threshold) -> jax.Array:
    """Return [B, V] bool, true for what is kept."""
    token = lax.broadcasted_iota(jnp.int32, values.shape, 1)
    value, last_tie = threshold.value[:, None], threshold.last_tie[:, None]
    return (values > value) | ((values == value) & (token <= last_tie))


def _top_k_threshold(
    logits: jax.Array, top_k: jax.Array, limited: jax.Array
) -> Threshold:
    start = _bracket(KEY_OF_MINUS_INF, KEY_OF_ZERO, limited)
    return _find_threshold(logits, jnp.ones_like, top_k.astype(jnp.float32), start)


def _top_p_threshold(weights: jax.Array, top_p: jax.Array) -> Threshold:
    start = _bracket(KEY_OF_ZERO, KEY_OF_ONE, top_p < 1)
    return _find_threshold(
        weights, lambda weight: weight, top_p * weights.sum(axis=-1), start
    )


def _bracket(lowest: int, highest: int, limited: jax.Array) -> _Bracket:
    """Return brackets from `lowest` to past `highest`, empty for unlimited rows."""
    low = jnp.full_like(limited, lowest, jnp.int32)
    high = jnp.where(limited, highest + 1, low)
    nothing = jnp.zeros_like(limited, jnp.float32)
    return _Bracket(low, high, nothing + jnp.inf, nothing)


def _find_threshold(
    values: jax.Array,
    weight_of: Callable[[jax.Array], jax.Array],
    goal: jax.Array,
    start: _Bracket,
) -> Threshold:
    """Return what keeps the fewest tokens that weigh `goal` or more.

    Tokens are kept by falling value and rising id.

    Args:
        values: [B, V] float32, what tokens are ranked by.
        weight_of: gives the weights of values, elementwise; not falling.
        goal: [B] float32, at most the weight of the row.
        start: brackets in which to look for the lowest value to keep.
    """

    def weight_from(value: jax.Array) -> jax.Array:
        kept = values >= value[:, None]
        return jnp.where(kept, weight_of(values), 0.0).sum(axis=-1)

    bracket = _bisect(weight_from, weight_of, goal, start)
    value = _from_key(bracket.low)
    weight = weight_of(value)
    is_one_value = bracket.high - bracket.low == 1
    too_many = is_one_value & (bracket.low_weight - weight >= goal)
    no_tie_dropped = jnp.full_like(bracket.low, values.shape[1])

    def last_tie() -> jax.Array:
        missing = jnp.ceil((goal - bracket.high_weight) / weight)
        last = _nth_true(values == value[:, None], jnp.maximum(missing, 1.0))
        return jnp.where(too_many, last, no_tie_dropped)

    last = lax.cond(jnp.any(too_many), last_tie, lambda: no_tie_dropped)
    return Threshold(value, last)


def _bisect(
    weight_from: Callable[[jax.Array], jax.Array],
    weight_of: Callable[[jax.Array], jax.Array],
    goal: jax.Array,
    start: _Bracket,
) -> _Bracket:
    """Narrow the bracket of each row to one value, or to one token if that is sooner.

    A row that is done stays as it is, so what the others need does not change it.

        values 5 3 3 2, goal 3, each of weight 1, keys as values
        bracket 0 : 6  ->  middle 3 weighs 3, reaches it  ->  bracket 3 : 6
                       ->  middle 4 weighs 1, misses it   ->  bracket 3 : 4, one value
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
    """Return the floats of keys, [B] float32 from [B] int32.

    The bits of positive floats are in the floats' order as integers; those of negative
    ones, but for the sign, in the opposite order:

        float   -2.0         -1.0         0.0   1.0          2.0
        bits    0xC0000000   0xBF800000   0     0x3F800000   0x40000000
        key    -0x40000001  -0x3F800001   0     0x3F800000   0x40000000
    """
    bits = jnp.where(key < 0, key ^ 0x7FFFFFFF, key)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _nth_true(mask: jax.Array, nth: jax.Array) -> jax.Array:
    """Return [B] int32, the index of the nth true value of a row, counted from 1."""
    weights = mask.astype(jnp.float32)
    # Half a step early, so that rounding cannot reach the one after.
    return inverse_cdf(weights, (nth - 0.5) / weights.sum(axis=-1))
