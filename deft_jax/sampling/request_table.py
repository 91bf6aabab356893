"""What the host says of each request that decodes: its sampling, limits and ends."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.capacity import bucket
from deft_jax.sampling.params import Sampling, SamplingRows, rows_for

MIN_BIASES = 16
"""Fewest entries of the logit bias table, so that most requests share a compilation."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RequestTable:
    """What the host sets per request slot.

    Attributes:
        sampling: rows of `R` requests.
        max_new_tokens: [R] int32, tokens a branch may have.
        ignore_eos: [R] bool, true to go on after an end-of-text token.
        eos: [any] int32, end-of-text token ids.
    """

    sampling: SamplingRows
    max_new_tokens: jax.Array
    ignore_eos: jax.Array
    eos: jax.Array


def make_request_table(
    samplings: Sequence[Sampling | None],
    limits: Sequence[int | None],
    eos_token_ids: Sequence[int],
) -> RequestTable:
    """Return what the device needs to know of each request slot.

    Args:
        samplings: how the tokens of each request are chosen; None for free slots.
        limits: tokens that a branch of each request may have; None for free slots.
        eos_token_ids: tokens that end a text.
    """
    most = max((len(s.logit_bias) for s in samplings if s is not None), default=0)
    rows = rows_for(samplings, bucket(max(MIN_BIASES, most)))
    ignores = [s is not None and s.ignore_eos for s in samplings]
    return RequestTable(
        sampling=jax.tree.map(jnp.asarray, rows),
        max_new_tokens=jnp.asarray([limit or 1 for limit in limits], jnp.int32),
        ignore_eos=jnp.asarray(np.array(ignores, bool)),
        eos=jnp.asarray(eos_token_ids or (-1,), jnp.int32),
    )
