"""Rows that have become idle are given back, and rows that run move to the front.

A step costs what its width costs, and the width reaches up to the last row that runs.
Only rows of planners that run at any width are given back early, or moved.
"""

from deft_jax.engine.forest import Forest
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.widths import least_width, row_widths
from deft_jax.runtime.state import Numbers
from deft_jax.strategies.traits import runs_at_any_width


def free_idle_rows(forest: Forest, live: LiveRequest, numbers: Numbers) -> None:
    """Take the rows of a request whose branches have ended.

    Args:
        forest: gets the rows back.
        live: a request that has taken part in the burst that is reported.
        numbers: what the burst reports.
    """
    if not _may_move(live):
        return
    width, size = len(numbers.row_node), forest.rooms.nodes
    idle = [row for row in live.rows if row < width and numbers.row_node[row] >= size]
    if idle:
        live.rows = [row for row in live.rows if row not in idle]
        forest.seats.give_back(None, idle)


def plan_moves(forest: Forest) -> list[int] | None:
    """Return the row that each row is to take over, None if that is not worth while.

    Rows 0, 5 and 6 run and may move, row 2 runs and may not, of 8. They move to rows
    0, 1 and 3, so that a step has 4 rows:

        0 5 2 6 1 3 4 7

    Args:
        forest: says which rows are free, and whose the others are.
    """
    lives = [live for live in forest.lives.values() if live.rows]
    moving = sorted(row for live in lives if _may_move(live) for row in live.rows)
    if not moving:
        return None
    free = sorted(forest.seats.rows + moving)[: len(moving)]
    widths = row_widths(forest.rooms)
    if least_width(widths, free[-1] + 1) == least_width(widths, moving[-1] + 1):
        return None
    source = dict(zip(free, moving, strict=True))
    rows = range(forest.rooms.rows)
    staying = {row for live in lives if not _may_move(live) for row in live.rows}
    others = iter(row for row in rows if row not in moving and row not in staying)
    return [
        source[row] if row in source else row if row in staying else next(others)
        for row in rows
    ]


def move_rows(forest: Forest, moves: list[int]) -> None:
    """Note that rows move with the next edit."""
    forest.pending.rows = moves
    target = {source: row for row, source in enumerate(moves)}
    for live in forest.lives.values():
        live.rows = [target[row] for row in live.rows]
    forest.seats.rows = sorted(target[row] for row in forest.seats.rows)


def _may_move(live: LiveRequest) -> bool:
    """Say whether a request's rows may be given back and moved."""
    has_started = live.root is not None and live.has_decoded
    return (
        has_started
        and runs_at_any_width(live.planner)
        and live.planner.draft_depth == 1
    )
