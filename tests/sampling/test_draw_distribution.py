import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deft_jax.sampling.draw import sample
from deft_jax.sampling.params import Sampling, rows_for
from deft_jax.sampling.truncation import truncated_weights

jitted_weights = jax.jit(truncated_weights)


def reference_probabilities(logits, sampling):
    """Temperature, top-k, top-p and min-p of one row, with a sort, in float64.

    What float32 would flush to zero is zero. Also gives the running sum top-p saw.
    """
    tempered = np.asarray(logits, np.float64) / sampling.temperature
    weights = np.exp(tempered - tempered.max())
    weights[weights < np.finfo(np.float32).tiny] = 0
    order = np.argsort(-tempered, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    running = np.cumsum(weights[order]) / weights[order].sum()
    if sampling.top_p < 1:
        order = order[: np.searchsorted(running, sampling.top_p) + 1]
    order = order[weights[order] >= sampling.min_p]
    probabilities = np.zeros_like(weights)
    probabilities[order] = weights[order] / weights[order].sum()
    return probabilities, running


requests = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 7, 300, 599, 600, 10_000]),
    top_p=st.sampled_from([1e-6, 0.1234, 0.5, 0.9, 0.98765, 1.0]),
    min_p=st.sampled_from([0.0, 0.0123, 0.456, 1.0]),
)


@given(
    st.lists(requests, min_size=4, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 10.0, 100.0]),
    st.sampled_from([None, 0, 3]),
)
def test_kept_tokens_are_those_of_a_sort(requests, seed, scale, decimals):
    logits = scale * np.random.default_rng(seed).normal(size=(4, 600))
    if decimals is not None:
        logits = logits.round(decimals)
    logits = logits.astype(np.float32)
    rows = rows_for(requests, 0)
    temperature = np.asarray(rows.temperature)
    tempered = (logits - logits.max(axis=1, keepdims=True)) / temperature[:, None]
    weights = np.asarray(jitted_weights(tempered, rows))
    for row, request in enumerate(requests):
        expected, running = reference_probabilities(logits[row], request)
        ratio = np.exp(tempered[row], dtype=np.float64)
        assume(np.abs(running - request.top_p).min() > 1e-5 or request.top_p == 1)
        assume(request.min_p in (0, 1) or np.abs(ratio - request.min_p).min() > 1e-6)
        np.testing.assert_array_equal(weights[row] > 0, expected > 0)


@pytest.mark.parametrize(("vocab_size", "num_draws"), [(7, 4096), (700, 16384)])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5, seed=1),
        Sampling(top_k=5, top_p=0.9, seed=2),
        Sampling(temperature=2.0, min_p=0.02, seed=3),
    ],
)
def test_frequencies_follow_the_distribution(vocab_size, num_draws, sampling):
    logits = np.random.default_rng(0).normal(scale=1.5, size=vocab_size)
    expected, _ = reference_probabilities(logits, sampling)
    tokens = draws_of_one_row(logits, sampling, num_draws)
    counts = np.bincount(tokens, minlength=vocab_size)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    mean = num_draws * expected[possible]
    chi_square = ((counts[possible] - mean) ** 2 / mean).sum()
    degrees = possible.sum() - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def draws_of_one_row(logits, sampling, num_draws):
    table = jax.tree.map(jnp.asarray, rows_for([sampling], 0))
    copies = jnp.broadcast_to(jnp.float32(logits), (num_draws, logits.size))
    sampled = jax.jit(sample, static_argnames=("seen", "counts"))(
        copies,
        table.take(jnp.zeros(num_draws, jnp.int32)),
        key=jnp.full(num_draws, 3, jnp.uint32),
        position=jnp.arange(num_draws, dtype=jnp.int32),
        seen=lambda: copies > 0,
        counts=lambda: jnp.zeros(copies.shape, jnp.int32),
    )
    return np.asarray(sampled.token)
