import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.sampling.draw import sample, top_logprobs
from deft_jax.sampling.params import Sampling, rows_for


def device_rows(requests, bias_capacity=4):
    return jax.tree.map(jnp.asarray, rows_for(requests, bias_capacity))


def draw(logits, requests, key=None, position=None, seen=None, counts=None):
    """Sample one token per row; keys and positions count up from 0 by default."""
    num_rows = len(logits)
    key = np.arange(num_rows) if key is None else key
    position = np.zeros(num_rows) if position is None else position
    seen = np.zeros(np.shape(logits), bool) if seen is None else seen
    counts = np.zeros(np.shape(logits)) if counts is None else counts
    return _jitted(
        jnp.asarray(logits, jnp.float32),
        device_rows(requests),
        jnp.asarray(key, jnp.uint32),
        jnp.asarray(position, jnp.int32),
        jnp.asarray(seen),
        jnp.asarray(counts, jnp.int32),
    )


@jax.jit
def _jitted(logits, rows, key, position, seen, counts):
    return sample(logits, rows, key, position, lambda: seen, lambda: counts)


def gaussian(num_rows, vocab_size, scale=3.0):
    rng = np.random.default_rng(0)
    return rng.normal(scale=scale, size=(num_rows, vocab_size)).astype(np.float32)


MIXED = [
    Sampling(temperature=0.0),
    Sampling(seed=5),
    Sampling(top_k=3, seed=5),
    Sampling(top_p=0.7, temperature=1.7),
    Sampling(top_p=0.999, min_p=0.001),
    Sampling(logit_bias={5: 3.0, 699: -100.0}),
    Sampling(repetition_penalty=1.3, temperature=3.0, presence_penalty=-0.5),
    Sampling(frequency_penalty=0.7, presence_penalty=1.5, seed=6),
    Sampling(temperature=0.0, frequency_penalty=2.0),
    Sampling(temperature=0.0, logprobs=3, stop_token_ids=(7,)),
    None,
]


def test_a_row_does_not_depend_on_the_others():
    requests = MIXED * 2
    num_rows = len(requests)
    order = np.random.default_rng(1).permutation(num_rows)
    logits = gaussian(num_rows, 700)
    seen, counts = logits > 2, np.maximum(logits - 3, 0).astype(int)
    key, position = np.arange(num_rows) * 7, np.arange(num_rows) + 100
    together = draw(logits, requests, key, position, seen, counts)
    permuted = draw(
        logits[order],
        [requests[row] for row in order],
        key[order],
        position[order],
        seen[order],
        counts[order],
    )
    np.testing.assert_array_equal(together.token[order], permuted.token)
    for row in range(num_rows):
        one = slice(row, row + 1)
        rows = (x[one] for x in (logits, requests, key, position, seen, counts))
        alone = draw(*rows)
        assert alone.token[0] == together.token[row]


def test_seed_key_and_position_each_change_the_draws():
    logits = np.zeros((64, 1000))
    count, zero = np.arange(64), np.zeros(64)
    draws = [
        draw(logits, [Sampling(seed=seed)] * 64, key, position).token
        for seed, key, position in [
            (0, zero, count),
            (1, zero, count),
            (0, zero + 1, count),
            (0, count, zero),
        ]
    ]
    for index, tokens in enumerate(draws):
        assert len(set(tokens.tolist())) > 50
        for other in draws[:index]:
            assert np.mean(np.asarray(tokens) == np.asarray(other)) < 0.1


def test_greedy_rows_take_the_first_maximum_beside_random_rows():
    logits = gaussian(4, 700)
    logits[0, [300, 650]] = 100.0
    requests = [Sampling(temperature=0.0), Sampling(), Sampling(temperature=0.0), None]
    tokens = draw(logits, requests).token
    expected = logits.argmax(axis=1)
    assert tokens[0] == 300
    np.testing.assert_array_equal(np.asarray(tokens)[[0, 2, 3]], expected[[0, 2, 3]])


def test_top_k_of_one_is_greedy_whatever_the_ties():
    logits = gaussian(8, 700).round(0)
    tokens = draw(logits, [Sampling(top_k=1)] * 8).token
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


def test_logprob_is_of_the_logits_before_any_change():
    logits = gaussian(8, 700)
    requests = [Sampling(temperature=0.3, top_k=4, logit_bias={9: 100.0})] * 8
    sampled = draw(logits, requests)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(sampled.token, [9] * 8)
    np.testing.assert_allclose(sampled.logprob, exact[:, 9], rtol=1e-5)


def test_repetition_penalty_weakens_seen_tokens():
    logits = [[2.0, 1.5, -1.0], [-1.0, -1.1, -9.0], [2.0, 1.5, -1.0]]
    seen = np.array([[True, False, False], [True, False, False], [True, False, False]])
    strong, none = Sampling(temperature=0.0, repetition_penalty=1.5), None
    tokens = draw(logits, [strong, strong, none], seen=seen).token
    np.testing.assert_array_equal(tokens, [1, 1, 0])


def test_seen_tokens_are_computed_only_when_needed():
    calls = []

    def note(kind):
        jax.debug.callback(lambda: calls.append(kind))
        return jnp.zeros((1, 5), bool if kind == "seen" else jnp.int32)

    @jax.jit
    def run(rows):
        zero = jnp.zeros(1, jnp.int32)
        return sample(
            jnp.zeros((1, 5)),
            rows,
            zero.astype(jnp.uint32),
            zero,
            lambda: note("seen"),
            lambda: note("counts"),
        )

    for settings, expected in [
        ({}, []),
        ({"repetition_penalty": 2.0}, ["seen"]),
        ({"presence_penalty": 1.0}, ["counts"]),
        ({"frequency_penalty": -1.0}, ["counts"]),
        ({"frequency_penalty": 1.0, "repetition_penalty": 2.0}, ["counts", "seen"]),
    ]:
        jax.block_until_ready(run(device_rows([Sampling(**settings)])))
        jax.effects_barrier()
        assert sorted(calls) == expected
        calls.clear()


def adjusted(logits, request, seen, counts):
    """Return [V] float64: logits after bias and penalties, as OpenAI defines them."""
    logits = logits.astype(np.float64)
    for token, value in request.logit_bias.items():
        logits[token] += value
    penalty = request.repetition_penalty
    weak = np.where(logits > 0, logits / penalty, logits * penalty)
    logits = np.where(seen, weak, logits)
    once = request.presence_penalty * (counts > 0)
    return logits - request.frequency_penalty * counts - once


def test_penalties_are_those_of_an_oracle():
    """Greedy rows take its largest logit; random ones the distribution it gives."""
    rng = np.random.default_rng(3)
    num_rows, vocab_size = 240, 300
    logits = rng.normal(scale=2.0, size=(num_rows, vocab_size)).astype(np.float32)
    counts = rng.integers(0, 5, logits.shape) * (rng.random(logits.shape) < 0.5)
    seen = (counts > 0) | (rng.random(logits.shape) < 0.2)
    requests = [
        Sampling(
            temperature=0.0,
            presence_penalty=rng.choice([0.0, *rng.uniform(-2, 2, 3)]),
            frequency_penalty=rng.choice([0.0, *rng.uniform(-2, 2, 3)]),
            repetition_penalty=rng.choice([1.0, 1.4]),
            logit_bias={int(rng.integers(vocab_size)): 2.0},
        )
        for _ in range(num_rows)
    ]
    tokens = np.asarray(draw(logits, requests, seen=seen, counts=counts).token)
    rows = zip(logits, requests, seen, counts, strict=True)
    exact = np.array([adjusted(*row) for row in rows])
    chosen = exact[np.arange(num_rows), tokens]
    np.testing.assert_allclose(chosen, exact.max(axis=1), atol=1e-5)
    assert np.mean(tokens == logits.argmax(axis=1)) < 0.7


def test_draws_under_penalties_have_the_oracles_distribution():
    """Of 20000 draws each frequency is within five standard errors."""
    rng, num_draws = np.random.default_rng(4), 20000
    logits = rng.normal(size=12).astype(np.float32)
    counts, seen = rng.integers(0, 4, 12), np.zeros(12, bool)
    request = Sampling(temperature=0.8, frequency_penalty=0.6, presence_penalty=-1.1)
    tiled = (np.tile(x, (num_draws, 1)) for x in (logits, seen, counts))
    rows, seen_rows, count_rows = tiled
    sampled = draw(rows, [request] * num_draws, seen=seen_rows, counts=count_rows)
    exact = np.exp(adjusted(logits, request, seen, counts) / request.temperature)
    exact /= exact.sum()
    found = np.bincount(np.asarray(sampled.token), minlength=12) / num_draws
    error = np.sqrt(exact * (1 - exact) / num_draws)
    assert np.all(np.abs(found - exact) < 5 * error)


def test_top_logprobs_are_those_of_an_oracle():
    logits = gaussian(8, 700)
    logits[5, ::2] = -np.inf
    logits[6, [3, 650]] = 30.0
    token, logprob = top_logprobs(jnp.asarray(logits), 20)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(token, order)
    expected = np.take_along_axis(exact, order, axis=1)
    np.testing.assert_allclose(logprob, expected, rtol=1e-5)


def test_top_logprobs_are_to_the_bit_those_of_the_tokens_taken():
    logits = gaussian(16, 700)
    sampled = draw(logits, [Sampling(top_k=20, seed=2)] * 16)
    token, logprob = jax.jit(top_logprobs, static_argnums=1)(jnp.asarray(logits), 20)
    is_taken = np.asarray(token) == np.asarray(sampled.token)[:, None]
    np.testing.assert_array_equal(is_taken.sum(axis=1), 1)
    np.testing.assert_array_equal(np.asarray(logprob)[is_taken], sampled.logprob)


def test_bias_bans_and_forces_tokens():
    ban = Sampling(logit_bias={0: -100.0, 1: -100.0, 2: -100.0})
    force = Sampling(logit_bias={699: 100.0})
    logits = np.zeros((64, 700))
    logits[:, :4] = 10.0
    tokens = np.asarray(draw(logits, [ban, force] * 32).token)
    assert set(tokens[::2].tolist()).isdisjoint({0, 1, 2}) and 3 in tokens[::2]
    assert set(tokens[1::2].tolist()) == {699}


def test_one_trace_serves_all_settings():
    traces = []

    @jax.jit
    def run(rows):
        traces.append(1)
        zero = jnp.zeros(len(MIXED), jnp.int32)
        logits = jnp.zeros((len(MIXED), 300))
        return sample(
            logits,
            rows,
            zero.astype(jnp.uint32),
            zero,
            lambda: logits > 0,
            lambda: jnp.zeros(logits.shape, jnp.int32),
        )

    for requests in ([None] * len(MIXED), MIXED, MIXED[::-1]):
        run(device_rows(requests))
    assert len(traces) == 1


extreme = st.sampled_from(
    [-np.inf, np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-45, 0.0, -0.0, 1.0, 80.0]
)
extreme_requests = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-45, 1e-30, 1.0, 3e38]),
    top_k=st.sampled_from([0, 1, 3, 269]),
    top_p=st.sampled_from([1e-37, 0.5, 0.99999994, 1.0]),
    min_p=st.sampled_from([0.0, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1e-37, 1.0, 1e38]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
)


@given(
    st.lists(extreme, min_size=6, max_size=6),
    st.lists(extreme_requests, min_size=3, max_size=3),
    st.integers(0, 1000),
)
def test_extreme_logits_never_pick_a_masked_token(values, requests, position):
    logits = np.full((3, 270), -np.inf, np.float32)
    logits[:, [0, 1, 100, 255, 256, 269]] = values
    counts = np.tile(np.arange(270) % 3, (3, 1))
    sampled = draw(logits, requests, position=[position] * 3, counts=counts)
    tokens = np.asarray(sampled.token)
    chosen = logits[np.arange(3), tokens]
    possible = np.any(logits > -np.inf)
    assert np.all(chosen > -np.inf) if possible else np.all(tokens == 0)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_row_without_a_finite_logit_gives_token_0(value):
    sampled = draw(np.full((len(MIXED), 300), value), MIXED)
    np.testing.assert_array_equal(sampled.token, 0)
    assert np.all(np.isnan(sampled.logprob))
