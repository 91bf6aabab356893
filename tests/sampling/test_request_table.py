"""The table of requests: each has its own options, whatever the others ask for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.sampling.draw import sample
from deft_jax.sampling.params import MAX_LOGPROBS, Sampling
from deft_jax.sampling.request_table import (
    MIN_BIASES,
    MIN_ENDS,
    NO_END,
    make_request_table,
)
from deft_jax.strategies.protocol import LENGTH, RUNNING, STOP, finish_code

EOS = (2, 5)
VOCAB = 300
MIXED = [
    Sampling(temperature=0.0, frequency_penalty=2.0, max_new_tokens=3),
    Sampling(seed=5, stop_token_ids=(7, 2), logprobs=3),
    Sampling(top_k=3, seed=5, ignore_eos=True),
    Sampling(top_p=0.7, temperature=1.7, presence_penalty=-1.5),
    None,
    Sampling(logit_bias={5: 3.0, 299: -100.0}, stop_token_ids=(5, 8), ignore_eos=True),
    Sampling(repetition_penalty=1.3, temperature=3.0, frequency_penalty=-0.5),
    Sampling(temperature=0.0),
]


def make(samplings):
    limits = [sampling and sampling.max_new_tokens for sampling in samplings]
    return make_request_table(samplings, limits, EOS)


def ends_of(table, slot):
    return [token for token in table.eos[slot].tolist() if token != NO_END]


def test_ends_are_those_of_each_request():
    table = make(MIXED)
    assert [ends_of(table, slot) for slot in range(len(MIXED))] == [
        [2, 5],
        [2, 5, 7],
        [],
        [2, 5],
        [2, 5],
        [5, 8],
        [2, 5],
        [2, 5],
    ]
    assert table.max_new_tokens.tolist() == [3, 256, 256, 256, 1, 256, 256, 256]


def shapes(table):
    leaves, tree = jax.tree.flatten(table)
    return tree, [(x.shape, x.dtype) for x in leaves]


def test_tables_share_their_shapes_up_to_the_buckets():
    """So that requests with other options run the programs that are there."""
    plain = shapes(make([Sampling(), None]))
    many = Sampling(stop_token_ids=tuple(range(10, 8 + MIN_ENDS)))
    assert shapes(make([many, None])) == plain
    assert shapes(make([None, Sampling(logit_bias={1: 1.0}, seed=3)])) == plain
    more = Sampling(stop_token_ids=tuple(range(10, 30)))
    wide = (
        make([more, None]),
        make([Sampling(stop_token_ids=tuple(range(9, 31))), None]),
    )
    assert shapes(wide[0]) == shapes(wide[1]) != plain
    assert wide[0].eos.shape == (2, 24) and MIN_BIASES == MIN_ENDS == 16


def test_the_program_with_likely_tokens_is_another():
    plain, rich = make([Sampling(), None]), make([None, Sampling(logprobs=1)])
    assert (plain.num_top, rich.num_top) == (0, MAX_LOGPROBS)
    assert jax.tree.structure(plain) != jax.tree.structure(rich)
    assert jax.tree.structure(make([Sampling()] * 2)) == jax.tree.structure(plain)


def finish(table, token, request, generated: Any = 1):
    arguments = (jnp.asarray(x, jnp.int32) for x in (token, request, generated))
    return finish_code(table, *arguments).tolist()


def test_finish_codes_follow_the_ends_of_each_request():
    table = make(MIXED)
    tokens = [2, 5, 7, 8, 9, NO_END]
    stops = {0: {2, 5}, 1: {2, 5, 7}, 2: set(), 5: {5, 8}}
    for request, ends in stops.items():
        expected = [STOP if token in ends else RUNNING for token in tokens]
        assert finish(table, tokens, [request] * len(tokens)) == expected
    assert finish(table, tokens, [0] * 6, 3) == [STOP, STOP, *[LENGTH] * 4]


def test_finish_codes_of_several_tokens_per_row():
    table = make(MIXED)
    found = finish(table, [[2, 7, 8], [2, 7, 8]], [[1], [5]], [[1], [256]])
    assert found == [[STOP, STOP, RUNNING], [LENGTH, LENGTH, STOP]]


@pytest.mark.parametrize("slots", [8, 5])
def test_requests_of_one_table_are_independent(slots):
    """Every row draws, and ends, as it does where its request is alone."""
    rng = np.random.default_rng(slots)
    num_rows = 40
    request = rng.integers(0, slots, num_rows)
    logits = rng.normal(scale=3.0, size=(num_rows, VOCAB)).astype(np.float32)
    counts = rng.integers(0, 4, logits.shape) * (rng.random(logits.shape) < 0.3)
    key, position = np.arange(num_rows) * 3, np.arange(num_rows) % 7

    def run(samplings, request, rows):
        table = make(samplings)
        values = (logits, counts, key, position)
        return _step(
            table, jnp.asarray(request), *(jnp.asarray(x[rows]) for x in values)
        )

    token, code = run(MIXED[:slots], request, slice(None))
    assert len(set(np.asarray(code).tolist())) > 1
    for slot in range(slots):
        rows = np.flatnonzero(request == slot)
        alone = run([MIXED[slot]], np.zeros(len(rows), int), rows)
        np.testing.assert_array_equal(alone[0], token[rows])
        np.testing.assert_array_equal(alone[1], code[rows])


@jax.jit
def _step(table, request, logits, counts, key, position):
    sampled = sample(
        logits,
        table.sampling.take(request),
        key.astype(jnp.uint32),
        position,
        lambda: counts > 0,
        lambda: counts,
    )
    # Ends of the requests are at the first ids, which few rows draw.
    token = jnp.where(position == 0, position + 5, sampled.token)
    return sampled.token, finish_code(table, token, request, position + 1)
