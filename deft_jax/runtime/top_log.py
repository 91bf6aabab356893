"""The log of the most likely next tokens, for the requests that want them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class TopLog:
    """The most likely tokens behind each row, as it was before a step; S steps.

    They belong to whatever token comes to follow the row's node: in this step, in a
    later one if the node rests, or a draft that was written behind it before. On the
    device the log is one array; with one row in node 7, whose likeliest tokens are 3
    and 5, a step is packed as

        7  3 5  bits bits

    Attributes:
        node: [S, B] int32, node of each row, N for idle rows.
        token: [S, B, K] int32, tokens by falling log-probability.
        logprob: [S, B, K] float32, their natural log-probabilities.
    """

    node: Any
    token: Any
    logprob: Any

    @classmethod
    def create(cls, steps: int, num_rows: int, num_top: int) -> jax.Array | tuple:
        """Return an empty log, packed: [S, 1 + 2 * K, B] int32; () if K is 0."""
        if num_top == 0:
            return ()
        return jnp.zeros((steps, 1 + 2 * num_top, num_rows), jnp.int32)

    @staticmethod
    def num_top(packed: Any) -> int:
        """Return `K` of a packed log."""
        return 0 if isinstance(packed, tuple) else (packed.shape[1] - 1) // 2

    def pack(self) -> jax.Array:
        """Return the fields of one step, each without S, as [1 + 2 * K, B] int32."""
        bits = lax.bitcast_convert_type(self.logprob, jnp.int32)
        return jnp.concatenate([self.node[None], self.token.T, bits.T])

    @classmethod
    def unpack(cls, packed: np.ndarray | tuple) -> "TopLog | None":
        """Return the log on the host from a packed one; None if it is ()."""
        if isinstance(packed, tuple):
            return None
        token, bits = np.split(np.moveaxis(packed[:, 1:], 1, 2), 2, axis=2)
        logprob = np.ascontiguousarray(bits).view(np.float32)
        return cls(node=packed[:, 0], token=token, logprob=logprob)
