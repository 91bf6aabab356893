"""Counts are the same whether pairs are compared or not."""

import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.tree import counting as counts
from deft_jax.tree.counting import (
    count_below,
    earlier_equal,
    exclusive_cumsum,
    largest,
    sum_before,
    tally,
)


@pytest.fixture(params=[0, counts.MAX_COMPARED], ids=["summed", "compared"])
def either(request, monkeypatch):
    for name in ("MAX_COMPARED", "MAX_NODE_PAIRS"):
        monkeypatch.setattr(counts, name, request.param)


def ints(values):
    return jnp.array(values, jnp.int32)


@pytest.mark.usefixtures("either")
def test_numbers_below_bounds():
    number, bound = ints([3, 0, 5, 3, 6]), ints([0, 1, 3, 4, 6])
    np.testing.assert_array_equal(count_below(number, bound, 6), [0, 1, 1, 3, 4])


@pytest.mark.usefixtures("either")
def test_indices_are_tallied():
    index = ints([2, 0, 2, -1, 4, 3])
    np.testing.assert_array_equal(tally(index, 4), [1, 0, 2, 1])
    weight = ints([5, 7, 1, 9, 9, 2])
    np.testing.assert_array_equal(tally(index, 4, weight), [7, 0, 6, 2])


@pytest.mark.usefixtures("either")
def test_the_largest_value_of_each_index():
    index, value = ints([2, 0, 2, -1, 4]), ints([5, 0, 7, 9, 9])
    np.testing.assert_array_equal(largest(index, 4, value), [0, -1, 7, -1])


def test_what_comes_before():
    key, mask = ints([5, 7, 5, 5]), jnp.array([True, True, False, True])
    np.testing.assert_array_equal(earlier_equal(key, mask), [0, 0, 1, 1])
    np.testing.assert_array_equal(exclusive_cumsum(ints([3, 0, 2])), [0, 3, 3, 5])
    np.testing.assert_array_equal(sum_before(ints([3, 1, 2])), [0, 3, 4])
