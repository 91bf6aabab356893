from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import CapacityError, DeftError
from deft_jax.sampling.params import NO_TOKEN, Sampling, SamplingRows, rows_for

DTYPES = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "bias_token": np.int32,
    "bias_value": np.float32,
    "seed": np.uint32,
}


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("max_new_tokens", 0, "from 1"),
        ("max_new_tokens", 2.5, "integer"),
        ("max_new_tokens", True, "integer"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "at least 0"),
        ("temperature", float("inf"), "finite"),
        ("temperature", 1e39, "finite"),
        ("temperature", "1", "number"),
        ("top_k", -1, "from 0"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.01, "at most 1"),
        ("min_p", -0.5, "from 0 to 1"),
        ("min_p", float("nan"), "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("repetition_penalty", float("inf"), "finite"),
        ("logit_bias", {3: float("-inf")}, "token 3"),
        ("logit_bias", {-1: 1.0}, "from 0"),
        ("logit_bias", {"3": 1.0}, "integer"),
        ("seed", -1, "from 0"),
        ("seed", 2**32, "to 4294967295"),
        ("stop", "", "not empty"),
        ("stop", ("a", ""), "not empty"),
        ("stop", (b"a",), "strings"),
        ("stop", 5, "a string or several"),
        ("logit_bias", {np.bool_(True): 1.0}, "integer"),
        ("logit_bias", [(1, 2.0)], "map token ids"),
        ("logit_bias", {3: True}, "number"),
        ("max_new_tokens", np.bool_(True), "integer"),
        ("top_k", np.float32(3), "integer"),
        ("top_k", np.array([3]), "integer"),
        ("temperature", np.bool_(True), "number"),
        ("temperature", np.array([0.5]), "number"),
        ("temperature", np.float32("nan"), "at least 0"),
        ("temperature", 1j, "number"),
        ("presence_penalty", 2.01, "from -2 to 2"),
        ("presence_penalty", float("nan"), "from -2 to 2"),
        ("frequency_penalty", -2.01, "from -2 to 2"),
        ("frequency_penalty", "1", "number"),
        ("stop_token_ids", -1, "from 0"),
        ("stop_token_ids", (3, 2.0), "integer"),
        ("stop_token_ids", "ab", "integer"),
        ("stop_token_ids", (True,), "integer"),
        ("logprobs", 21, "from 0 to 20"),
        ("logprobs", True, "integer"),
        ("ignore_eos", "no", "True or False"),
        ("ignore_eos", 1, "True or False"),
    ],
)
def test_bad_value_is_refused_in_one_line(name, value, limit):
    with pytest.raises(DeftError) as caught:
        Sampling(**{name: value})
    message = str(caught.value)
    assert name in message and limit in message and "\n" not in message


def test_limits_themselves_are_accepted():
    Sampling(max_new_tokens=1, temperature=0, top_p=1, min_p=1, seed=2**32 - 1)
    Sampling(temperature=float("1e-45"), top_p=1e-30, repetition_penalty=1e-37)
    Sampling(presence_penalty=-2, frequency_penalty=2, logprobs=20)


@pytest.mark.parametrize("integer", [np.int64, np.uint32, np.array, jnp.int32])
@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, jnp.float32])
def test_scalars_of_numpy_and_jax_become_pythons_own(integer, number):
    given: dict[str, Any] = {
        "max_new_tokens": integer(7),
        "temperature": number(0.5),
        "top_k": integer(3),
        "top_p": number(0.5),
        "min_p": integer(0),
        "repetition_penalty": number(2.0),
        "presence_penalty": number(-0.5),
        "frequency_penalty": integer(1),
        "stop_token_ids": [integer(6), np.int16(8)],
        "logprobs": integer(4),
        "logit_bias": {np.int64(5): number(-1.5)},
        "seed": integer(9),
        "ignore_eos": np.bool_(True),
    }
    plain = Sampling(
        max_new_tokens=7,
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        repetition_penalty=2.0,
        presence_penalty=-0.5,
        frequency_penalty=1,
        stop_token_ids=(6, 8),
        logprobs=4,
        logit_bias={5: -1.5},
        seed=9,
        ignore_eos=True,
    )
    sampling = Sampling(**given)
    assert sampling == plain and hash(sampling) == hash(plain)
    assert {type(value) for value in vars(sampling).values()} <= {
        *(int, float, dict, tuple, bool),
    }


def test_none_stands_for_no_stop_string_and_no_bias():
    values: dict[str, Any] = {"stop": None, "logit_bias": None}
    assert Sampling(**values) == Sampling()


def test_one_stop_string_counts_as_a_tuple_of_one():
    assert _with_stop("end") == ("end",)
    assert _with_stop(["a", "b"]) == ("a", "b")


def _with_stop(stop: Any) -> tuple[str, ...]:
    return Sampling(stop=stop).stop


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, ()), (7, (7,)), ([3, 4], (3, 4)), (np.array([5, 6]), (5, 6)), ((), ())],
)
def test_stop_tokens_are_one_several_or_none(given: Any, expected):
    ends = Sampling(stop_token_ids=given).stop_token_ids
    assert ends == expected and {type(token) for token in ends} <= {int}


def test_later_changes_of_the_callers_bias_do_not_show():
    bias = {1: 2.0}
    sampling = Sampling(logit_bias=bias)
    bias[2] = 3.0
    assert sampling.logit_bias == {1: 2.0}
    assert hash(sampling) == hash(Sampling(logit_bias={1: 2.0}))


def test_bias_is_checked_against_the_vocabulary():
    sampling = Sampling(logit_bias={99: 1.0})
    sampling.check(100)
    with pytest.raises(DeftError, match="from 0 to 98, got 99"):
        sampling.check(99)


def test_stop_tokens_and_logprobs_are_checked_against_the_vocabulary():
    sampling = Sampling(stop_token_ids=(0, 99), logprobs=5)
    sampling.check(100)
    with pytest.raises(DeftError, match=r"stop_token_ids must be .* to 98, got 99"):
        sampling.check(99)
    with pytest.raises(DeftError, match="logprobs must be from 0 to 4, got 5"):
        Sampling(logprobs=5).check(4)


def test_rows_hold_the_requests_in_order():
    rows = rows_for(
        [Sampling(temperature=0.5, logit_bias={7: -1.0}, seed=2**32 - 1), None], 2
    )
    np.testing.assert_array_equal(rows.temperature, [0.5, 0.0])
    np.testing.assert_array_equal(rows.seed, [2**32 - 1, 0])
    np.testing.assert_array_equal(rows.bias_token, [[7, NO_TOKEN], [NO_TOKEN] * 2])
    np.testing.assert_array_equal(rows.bias_value, [[-1, 0], [0, 0]])
    for name, dtype in DTYPES.items():
        assert getattr(rows, name).dtype == dtype


def test_too_many_biased_tokens_are_refused():
    with pytest.raises(CapacityError, match="at most 1 tokens, got 2"):
        rows_for([Sampling(logit_bias={1: 1.0, 2: 1.0})], 1)


def test_created_rows_are_neutral():
    created, expected = SamplingRows.create(3, 4), rows_for([None] * 3, 4)
    for name, dtype in DTYPES.items():
        array = getattr(created, name)
        assert isinstance(array, jax.Array) and array.dtype == dtype
        np.testing.assert_array_equal(array, getattr(expected, name))


def test_take_gathers_rows_and_clips():
    table = jax.tree.map(jnp.asarray, rows_for([Sampling(seed=s) for s in (5, 6)], 1))
    taken = jax.jit(SamplingRows.take)(table, jnp.array([1, 0, 1, -1, 9]))
    np.testing.assert_array_equal(taken.seed, [6, 5, 6, 5, 6])
    assert taken.bias_token.shape == (5, 1)
