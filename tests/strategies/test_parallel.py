from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.strategies import BestOfN, SelfConsistency


@pytest.mark.parametrize("number", [2, np.int64(2), np.uint8(2), jnp.int32(2)])
@pytest.mark.parametrize("strategy", [BestOfN, SelfConsistency])
def test_integers_of_any_library_count_branches(strategy: Any, number: Any):
    made = strategy(number)
    assert made == strategy(2) and hash(made) == hash(strategy(2))
    assert type(made.n) is int
    assert (made.rows, made.nodes) == (2, 3)


@pytest.mark.parametrize("number", [True, np.bool_(True), 2.0, "2", None, np.ones(2)])
@pytest.mark.parametrize("strategy", [BestOfN, SelfConsistency])
def test_what_is_no_integer_is_refused(strategy: Any, number: Any):
    with pytest.raises(DeftError, match="n must be an integer, got") as caught:
        strategy(number)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [0, -3, np.int64(0)])
def test_a_prompt_needs_a_branch(number: Any):
    with pytest.raises(DeftError, match="n must be at least 1 branch, got"):
        BestOfN(number)
