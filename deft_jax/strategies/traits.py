"""What a planner may say of itself beyond its protocol, and what is taken if not."""

from deft_jax.strategies.protocol import Planner


def runs_at_any_width(planner: Planner) -> bool:
    """Say whether a planner may see the first rows alone, and its rows may move.

    One that says `any_width = True` has no state of its own by row, and does not use a
    row again that has become idle.
    """
    return bool(getattr(planner, "any_width", False))


def leaves_paths(planner: Planner) -> bool:
    """Say whether the paths of a planner's requests may stay cached when they end.

    One that says `leaves_paths = True` does not count on the nodes of branches that
    have finished being free again.
    """
    return bool(getattr(planner, "leaves_paths", False))
