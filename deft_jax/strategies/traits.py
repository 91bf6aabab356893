"""What a strategy or planner may say of itself besides the protocol, with defaults.

All of it is optional, so that a strategy which says nothing works as well: it gets
pages for a branch of full length in every node that it may hold.
"""

from typing import Any

from deft_jax.capacity import Footprint


def footprint_of(strategy: Any) -> Footprint:
    """Return what one request of a strategy may hold at once.

    A strategy may have a method `pages(limit, page_size)`: the pages that the tokens it
    generates take at most, the prompt's own not counted, where a path may have `limit`
    tokens. Without it every node but the root counts as a branch of that length.

    Args:
        strategy: a `Strategy`.
    """
    pages = getattr(strategy, "pages", None)
    return Footprint(int(strategy.rows), int(strategy.nodes), pages)


def merges_chains(planner: Any) -> bool:
    """Return the planner's `merges_chains`, false if it has none.

    If true, a node that is its parent's only child may take over its parent, whose
    number then is another node's or nobody's. It is for planners that hold numbers of
    no nodes but those of their rows, and continue no others: their trees then need no
    more nodes than they have branches. Nodes that a plan keeps are left alone.
    """
    return bool(getattr(planner, "merges_chains", False))


def shares_pages(planner: Any) -> bool:
    """Return the planner's `shares_pages`, false if it has none.

    If true, the children that its plans add fill the empty slots of their request's
    pages before new ones are opened. It is for many short branches: then the pages are
    full, where each would have one of its own with a token or two.
    """
    return bool(getattr(planner, "shares_pages", False))


def ends_branches(strategy: Any) -> bool:
    """Return the strategy's `ends_branches`, false if it has none.

    If true, the host lets a branch take more tokens than the request's limit, as a
    replay of a recorded tree does, which knows where its branches end.
    """
    return bool(getattr(strategy, "ends_branches", False))


def runs_at_any_width(planner: Any) -> bool:
    """Return the planner's `any_width`, false if it has none.

    If true, the planner may be shown the first rows alone, and its rows may move: it
    has no state of its own by row, and does not use a row again that has become idle.
    """
    return bool(getattr(planner, "any_width", False))


def leaves_paths(planner: Any) -> bool:
    """Return the planner's `leaves_paths`, false if it has none.

    If true, the paths of its requests may stay cached when branches and requests end:
    the planner does not count on the nodes of finished branches being free again.
    """
    return bool(getattr(planner, "leaves_paths", False))


def node_carry(planner: Any) -> Any:
    """Return the planner's `node_carry`, () if it has none.

    It is a pytree of what each node carries at first, a number or an array: the state
    of an automaton, a sum of scores. The root of a request carries that; a child starts
    with what its parent carries, and a node keeps what it has until a plan changes it
    (`Plan.carry`). A trunk takes over what the tip of the drafts that it accepts does.
    """
    return getattr(planner, "node_carry", ())


def may_wait(planner: Any) -> bool:
    """Return the planner's `may_wait`, false if it has none.

    If true, its plans may let requests wait (`Plan.wait`) for scores of their nodes.
    The strategy then has a method `evaluate(tree)`, which is given the request's
    `GenerationTree` as far as it has grown and returns a score for any of its nodes, by
    their ids. It is called on a thread of its own, while other requests go on; the
    planner finds the scores in `View.score`, and the result has them.
    """
    return bool(getattr(planner, "may_wait", False))
