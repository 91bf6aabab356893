"""The packed log of the decode loop."""

import jax.numpy as jnp
import numpy as np

from deft_jax.runtime.state import StepLog
from deft_jax.runtime.top_log import TopLog

ROWS = 3


def test_a_log_comes_back_as_it_was_packed():
    fields = dict.fromkeys(StepLog.__dataclass_fields__, jnp.arange(ROWS))
    fields |= {
        "logprob": jnp.array([-1.5, -jnp.inf, jnp.nan]),
        "draft_logprob": jnp.array([-0.25, 0.0, -2.0], jnp.bfloat16),
        "branch": jnp.array([True, False, True]),
        "draft": jnp.array([False, False, True]),
    }
    log = StepLog.create(steps=2, num_rows=ROWS).at[1].set(StepLog(**fields).pack())
    unpacked = StepLog.unpack(np.asarray(log))
    for name, value in fields.items():
        np.testing.assert_array_equal(getattr(unpacked, name)[1], value)
    assert unpacked.logprob.dtype == unpacked.draft_logprob.dtype == np.float32
    assert unpacked.branch.dtype == unpacked.draft.dtype == bool


def test_a_log_of_likely_tokens_comes_back_as_it_was_packed():
    rng = np.random.default_rng(0)
    step = TopLog(
        node=jnp.arange(ROWS) + 5,
        token=jnp.asarray(rng.integers(0, 99, (ROWS, 4)), jnp.int32),
        logprob=jnp.asarray(rng.normal(size=(ROWS, 4)), jnp.float32)
        .at[1, 3]
        .set(-jnp.inf),
    )
    log = TopLog.create(steps=2, num_rows=ROWS, num_top=4)
    assert not isinstance(log, tuple) and TopLog.num_top(log) == 4
    unpacked = TopLog.unpack(np.asarray(log.at[1].set(step.pack())))
    assert unpacked is not None and unpacked.logprob.dtype == np.float32
    for name, value in vars(step).items():
        np.testing.assert_array_equal(getattr(unpacked, name)[1], value)


def test_a_log_of_no_likely_tokens_is_nothing():
    log = TopLog.create(steps=2, num_rows=ROWS, num_top=0)
    assert (log, TopLog.num_top(log), TopLog.unpack(())) == ((), 0, None)
