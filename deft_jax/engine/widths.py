"""How many rows or tokens a program is made for: few sizes, so that few are made."""

from collections.abc import Callable, Sequence

from deft_jax.capacity import Capacity

ROWS = (1, 4, 16, 64, 256)
"""Numbers of rows for which decode steps are compiled, beside the capacity's own."""

TOKENS = (16, 64)
"""Numbers of tokens for which chunks are compiled, beside the capacity's own."""


def row_widths(capacity: Capacity) -> list[int]:
    """Return the numbers of rows that steps are made for, in order."""
    return [width for width in ROWS if width < capacity.rows] + [capacity.rows]


def chunk_widths(capacity: Capacity) -> list[int]:
    """Return the numbers of tokens that chunks are made for, in order."""
    return [width for width in TOKENS if width < capacity.chunk] + [capacity.chunk]


def least_width(widths: Sequence[int], needed: int) -> int:
    """Return the least width that will do."""
    return next(width for width in widths if width >= needed)


def choose_width(
    needed: int,
    widths: Sequence[int],
    is_ready: Callable[[int], bool],
    begin: Callable[[int], None],
) -> int:
    """Return the width to run: the least that will do, if its program is there.

    Otherwise the next wider one that is there runs, so that nobody waits for a program
    that would only be faster. Where none is there the least is made.

    Args:
        needed: rows or tokens.
        widths: what programs are made for, in order.
        is_ready: says whether the program of a width is there.
        begin: begins to make the program of a width, if that is worth while.
    """
    fitting = [width for width in widths if width >= needed]
    ready = [width for width in fitting if is_ready(width)]
    if not ready:
        return fitting[0]
    if ready[0] != fitting[0]:
        begin(fitting[0])
    return ready[0]
