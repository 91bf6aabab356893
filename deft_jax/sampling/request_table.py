"""What the host says of each request that decodes: its sampling, limits and ends."""

import dataclasses

import jax

from deft_jax.sampling.params import SamplingRows


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
