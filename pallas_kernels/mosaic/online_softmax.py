"""Online softmax over a tile of rows, as all the attention kernels do it."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ..kernel_spec import KernelSpec
from .tile import Tile

LOG2E = math.log2(math.e)
HIDDEN = -1e30
"""What takes the place of a logit that a row does not see."""

LEAST_PEAK = -1e20
"""Above HIDDEN, so that a row that sees nothing weighs every token 0."""


class State(NamedTuple):
    """What a kernel keeps of each row while it walks over KV; logits are in log 2.

    Attributes:
        out: [rows, D] float32, values weighted by `2 ** (logit - peak)`.
        peak: [rows] float32, running maximum of the logits.
        total: [rows] float32, sum of the weights.
    """

    out: Any
    peak: Any
    total: Any


def empty_state(tile: Tile, columns: int) -> State:
    """Return the state of rows that have seen nothing yet."""
    out, peak = tile.full(columns, 0.0), tile.full_row(LEAST_PEAK)
    return State(out, peak, tile.full_row(0.0))


def sees(tile: Tile, spec: KernelSpec, ranks, first_row, back=None):
    """Return [rows, columns] bool: whether each row sees each token.

    With G = 2 the rows 0 1 2 3 of the tile that begins at rank 5 are ranks 5 5 6 6, and
    the tile's first row is row 10 of all. A token that ranks 6 and 7 see, `6:8`, is
    seen by the rows `12:16` of all, which are `2:6` of the tile: by rows 2 and 3.

    Args:
        tile: tile of the rows.
        spec: what the kernel is compiled for.
        ranks: [columns] int32, first rank that sees the token and, 16 bits up, one past
            the last.
        first_row: number of the tile's first row among the rows of all queries.
        back: [rows, columns] int32, how many positions the token lies behind the
            query; None without a window.
    """
    first = (ranks & 0xFFFF) * spec.group - first_row
    end = lax.shift_right_logical(ranks, 16) * spec.group - first_row
    row = tile.row_numbers_across(ranks.shape[0])
    seen = (tile.across_columns(first) <= row) & (row < tile.across_columns(end))
    return seen if back is None else seen & (back < spec.window)


def normalise(tile: Tile, state: State, rows_left):
    """Return the output of a state, and how much it weighs against others.

    Args:
        tile: tile of the rows.
        state: state of all tokens.
        rows_left: rows in use; those from here on count as having seen nothing.

    Returns:
        out [rows, D] float32 and log-sum-exp [rows] float32 in units of log 2; zeros
        and -inf for rows that saw nothing.
    """
    blind = (state.total == 0.0) | (tile.row_numbers() >= rows_left)
    total = jnp.where(blind, 1.0, state.total)
    factor = jnp.where(blind, 0.0, 1.0 / total)
    lse = jnp.where(blind, -jnp.inf, state.peak + jnp.log2(total))
    return scale_rows(tile, state.out, factor), lse


def scale_rows(tile: Tile, out, factor):
    """Return `out` times a factor per row: zeros where it is 0, whatever `out` holds.

    Rows that see nothing may hold anything. A factor that is NaN makes its row NaN, so
    that a query that is not finite does not end as one that saw nothing.

    Args:
        tile: tile of the rows.
        out: [rows, D] float32.
        factor: [rows] float32, at least 0 or NaN.
    """
    factor = tile.across_rows(factor, out.shape[1])
    return jnp.where(factor == 0.0, 0.0, out * factor)
