"""What the host says of each request that decodes: its sampling, limits and ends."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.capacity import bucket
from deft_jax.sampling.params import (
    MAX_LOGPROBS,
    Sampling,
    SamplingRows,
    rows_for,
)

MIN_BIASES = 16
"""Fewest entries of the logit bias table, so that most calls share a compilation."""

MIN_ENDS = 16
"""Fewest entries of the table of ends, for the same reason."""

NO_END = -1
"""Fills unused places of `RequestTable.eos`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RequestTable:
    """What the host sets per request slot.

    Attributes:
        sampling: rows of `R` requests.
        max_new_tokens: [R] int32, tokens a branch may have.
        eos: [R, ends] int32, tokens that end a branch of each request: those that end a
            text, unless the request ignores them, and its own; `NO_END` where unused.
        num_top: static; how many of the most likely tokens the decode loop writes down
            for every row, 0 for none, which is a program of its own.
    """

    sampling: SamplingRows
    max_new_tokens: jax.Array
    eos: jax.Array
    num_top: int = dataclasses.field(default=0, metadata={"static": True})


def make_request_table(
    samplings: Sequence[Sampling | None],
    limits: Sequence[int | None],
    eos_token_ids: Sequence[int],
) -> RequestTable:
    """Return what the device needs to know of each request slot.

    What one request asks for changes nothing for the others, but that the decode loop
    writes down the most likely tokens of all rows if one wants them.

    Args:
        samplings: how the tokens of each request are chosen; None for free slots.
        limits: tokens that a branch of each request may have; None for free slots.
        eos_token_ids: tokens that end a text.
    """
    used = [sampling for sampling in samplings if sampling is not None]
    most_biases = max((len(sampling.logit_bias) for sampling in used), default=0)
    rows = rows_for(samplings, bucket(max(MIN_BIASES, most_biases)))
    return RequestTable(
        sampling=jax.tree.map(jnp.asarray, rows),
        max_new_tokens=jnp.asarray([limit or 1 for limit in limits], jnp.int32),
        eos=jnp.asarray(_ends(samplings, eos_token_ids)),
        num_top=MAX_LOGPROBS if any(sampling.logprobs for sampling in used) else 0,
    )


def _ends(
    samplings: Sequence[Sampling | None], eos_token_ids: Sequence[int]
) -> np.ndarray:
    """Return [R, ends] int32, the tokens that end a branch of each request.

    Tokens 2 and 5 end a text; of two requests the first has 7 as an end of its own, the
    second ignores ends of text and has 5 and 8 (with room for 4):

        2 5 7 -1
        5 8 -1 -1
    """
    ends = [
        dict.fromkeys((*(() if sampling.ignore_eos else eos_token_ids), *own))
        for sampling in (x or Sampling() for x in samplings)
        for own in [sampling.stop_token_ids]
    ]
    width = bucket(max(MIN_ENDS, *map(len, ends)))
    table = np.full((len(ends), width), NO_END, np.int32)
    for row, tokens in zip(table, ends, strict=True):
        row[: len(tokens)] = list(tokens)
    return table
