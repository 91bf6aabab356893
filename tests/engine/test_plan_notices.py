"""What a notice says of rows that the device left out."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from deft_jax.engine.plan_notices import plan_notices
from deft_jax.runtime.state import StepLog
from deft_jax.tree.state import NO_NODE

N, VOCAB = 10, 50
ACTIVE: Any = {0: "seven", 2: "four"}


def notices(left_out, token, request, steps=2):
    """Return the notices on logged steps of two rows; [S, B] each."""
    arrays = {"left_out": left_out, "token": token, "request": request}
    log = SimpleNamespace(**{name: np.array(x) for name, x in arrays.items()})
    first: dict[Any, str] = {}
    for live, notice in plan_notices(cast(StepLog, log), steps, ACTIVE, (N, VOCAB)):
        first.setdefault(live, notice)
    return first


def test_each_request_is_told_of_its_first_row():
    found = notices(
        [[NO_NODE, 3], [N + 1, 4], [5, 5]],
        [[1, 2], [3, 60], [1, 1]],
        [[0, 2], [0, 2], [0, 0]],
    )
    assert found.keys() == {"seven", "four"}
    assert "lets row 1 continue node 3, which is not live;" in found["four"]
    assert (
        "lets row 0 continue row 1 of the plan, which is no earlier row"
        in found["seven"]
    )
    assert not any("\n" in notice for notice in found.values())


def test_a_row_of_no_active_request_is_told_to_all():
    found = notices([[NO_NODE, 3]], [[1, VOCAB]], [[0, 1]], steps=1)
    assert found.keys() == {"seven", "four"} and found["seven"] == found["four"]
    assert "take token 50; the vocabulary has 0 to 49" in found["seven"]


def test_steps_of_an_earlier_burst_do_not_count():
    assert notices([[NO_NODE] * 2, [3, 3]], [[1, 1]] * 2, [[0, 2]] * 2, steps=1) == {}
