"""The packed log of the decode loop."""

import jax.numpy as jnp
import numpy as np

from deft_jax.runtime.state import StepLog

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
