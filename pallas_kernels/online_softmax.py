"""What the attention kernels keep per row of a tile while they walk over KV."""

import math
from typing import Any, NamedTuple

LOG2E = math.log2(math.e)
HIDDEN = -1e30
LEAST_PEAK = -1e20
"""Above HIDDEN, so that a row that sees nothing weighs every token 0."""


class State(NamedTuple):
    """Online softmax of a tile: logits are in units of log 2.

    Attributes:
        out: [rows, D] float32, values weighted by `2 ** (logit - peak)`.
        peak: [rows] float32, running maximum of the logits.
        total: [rows] float32, sum of the weights.
    """

    out: Any
    peak: Any
    total: Any
