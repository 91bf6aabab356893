"""Checks of a plan on the host, for whoever writes a planner.

The decode loop checks nothing that would cost time: a row that asks for the impossible
is idle there, and one that asks for the wrong thing gives wrong text. `checked` says
what is wrong with the first such plan.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.strategies.protocol import (
    LENGTH,
    RUNNING,
    STOP,
    Plan,
    Planner,
    Strategy,
    View,
)
from deft_jax.strategies.tree_paths import TreePaths
from deft_jax.tree.state import NO_NODE


def check_plan(view: View, plan: Plan, draft_depth: int = 1) -> None:
    """Check that a plan can be carried out and means what it says.

    Args:
        view: what the planner saw; concrete arrays.
        plan: what it asks for; concrete arrays.
        draft_depth: levels of rows that may continue rows of the plan.

    Raises:
        DeftError: something in the plan is impossible, or would give wrong text.
    """
    check_shapes(view, plan)
    view, plan = jax.tree.map(np.asarray, (view, plan))
    for problem in _problems(view, plan, draft_depth):
        raise DeftError(problem)


def check_shapes(view: View, plan: Plan) -> None:
    """Check the shapes and dtypes of a plan, whose arrays may be traced.

    Raises:
        DeftError: an array is not what `Plan` says.
    """
    expected = jax.eval_shape(Plan.continue_all, view)
    for name, right in vars(expected).items():
        got = getattr(plan, name)
        got = got if hasattr(got, "shape") else np.asarray(got)
        if (got.shape, got.dtype) != (right.shape, right.dtype):
            raise DeftError(
                f"the plan's {name} must be {right.dtype}{list(right.shape)}, "
                f"got {got.dtype}{list(got.shape)}"
            )


def checked(strategy: Strategy) -> Strategy:
    """Return the strategy with every plan of its planner checked, for tests.

    Use it in place of the strategy in a call of `Engine.generate`, which then raises
    the `DeftError` of the first plan that `check_plan` refuses. It is slow, since every
    step waits for the host, and compiles anew.
    """
    return _CheckedStrategy(strategy)


class _CheckedStrategy:
    """A strategy that fails when its first tree is concluded, if a plan was bad.

    Attributes:
        planner: the strategy's planner, which notes what was wrong with its plans.
    """

    def __init__(self, strategy: Strategy):
        self._strategy = strategy
        self.planner = _CheckedPlanner(strategy.planner)

    @property
    def rows(self) -> int:
        """The strategy's rows."""
        return self._strategy.rows

    @property
    def nodes(self) -> int:
        """The strategy's nodes."""
        return self._strategy.nodes

    def conclude(self, tree: Any) -> Any:
        """Return what the strategy concludes.

        Raises:
            DeftError: a plan was bad.
        """
        jax.effects_barrier()
        if self.planner.problems:
            raise DeftError(self.planner.problems[0])
        return self._strategy.conclude(tree)


class _CheckedPlanner:
    """A planner that notes what is wrong with its plans; equal to itself alone.

    Attributes:
        problems: what was wrong since `init`, in the order of the steps.
    """

    def __init__(self, planner: Planner):
        self._planner = planner
        self.problems: list[str] = []

    @property
    def draft_depth(self) -> int:
        """The planner's levels of rows."""
        return self._planner.draft_depth

    def init(self, capacity: Capacity) -> Any:
        """Return the planner's first state; what was wrong before is forgotten."""
        self.problems.clear()
        return self._planner.init(capacity)

    def plan(self, state: Any, view: View) -> tuple[Any, Plan]:
        """Return the planner's next state and plan, which the host looks at."""
        state, plan = self._planner.plan(state, view)
        check_shapes(view, plan)
        io_callback(self._note, None, view, plan, ordered=True)
        return state, plan

    def _note(self, view: View, plan: Plan) -> None:
        view, plan = jax.tree.map(np.asarray, (view, plan))
        self.problems += list(_problems(view, plan, self.draft_depth))


def _problems(view: View, plan: Plan, draft_depth: int) -> Iterator[str]:
    """Yield what is wrong with a plan of NumPy arrays, the rows in order."""
    paths = TreePaths(view, plan)
    yield from _bad_tips_and_prunes(view, plan)
    grown: dict[int, int] = {}
    named: dict[tuple[int, int], int] = {}
    level = np.zeros(len(plan.source), int)
    for row in np.flatnonzero(plan.source != NO_NODE).tolist():
        found = list(_bad_source(plan, paths, row, level, draft_depth))
        found = found or list(_bad_token(view, plan, paths, row))
        found = found or list(_bad_growth(plan, paths, row, grown, named))
        yield from found
        if not found:
            paths.place(row)


def _bad_tips_and_prunes(view: View, plan: Plan) -> Iterator[str]:
    """Yield what is wrong with the nodes that a plan accepts and prunes."""
    live, trunks = view.tree.live, {}
    for row, tip in enumerate(plan.accept.tolist()):
        if tip == NO_NODE:
            continue
        if not 0 <= tip < len(live) or not live[tip]:
            yield f"row {row} accepts node {tip}, which is not live"
            continue
        trunk = int(view.tree.storage[tip])
        if trunk in trunks:
            yield (
                f"rows {trunks[trunk]} and {row} accept drafts of one trunk, "
                f"node {trunk}; accept one tip"
            )
        trunks[trunk] = row
    for node in np.flatnonzero(plan.prune & ~live).tolist():
        yield f"node {node} is pruned, which is not live"


def _bad_source(
    plan: Plan, paths: TreePaths, row: int, level: np.ndarray, draft_depth: int
) -> Iterator[str]:
    """Yield what is wrong with what a row continues; note the row's level."""
    source, size = int(plan.source[row]), paths.num_nodes
    if source < size:
        level[row] = 1
        if source < 0 or not paths.is_live(source):
            yield (
                f"row {row} continues node {source}, which is not live; continue a "
                f"live node, row j of the plan as {size} + j, or nothing as {NO_NODE}"
            )
        elif (pruned := paths.pruned_above(source)) is not None:
            yield (
                f"row {row} continues node {source}, which goes with node {pruned} "
                "that the plan prunes"
            )
        return
    above = source - size
    if above >= row:
        yield f"row {row} continues row {above} of the plan; it may only be an earlier"
    elif not paths.is_placed(above) or plan.finish[above] != RUNNING:
        yield f"row {row} continues row {above} of the plan, which does not go on"
    else:
        level[row] = level[above] + 1
        if level[row] > draft_depth:
            yield (
                f"row {row} is on level {level[row]} of the plan's rows; the planner's "
                f"draft_depth is {draft_depth}"
            )


def _bad_token(view: View, plan: Plan, paths: TreePaths, row: int) -> Iterator[str]:
    """Yield what is wrong with a row's token, its finish code and its request."""
    token, vocab_size = int(plan.token[row]), view.logits.shape[1]
    if not 0 <= token < vocab_size:
        yield f"row {row} takes token {token}; the vocabulary has 0 to {vocab_size - 1}"
    request, right = int(plan.request[row]), paths.request_of(row)
    if request != right:
        yield f"row {row} is of request {request}; its path is of request {right}"
        return
    finish, generated = int(plan.finish[row]), int(plan.generated[row])
    if finish not in (RUNNING, STOP, LENGTH):
        yield f"row {row} has finish code {finish}, not {RUNNING}, {STOP} or {LENGTH}"
    if generated != paths.generated(row):
        yield (
            f"row {row} has generated {generated} tokens with this one; its path has "
            f"{paths.generated(row)}"
        )
    limit = int(view.table.max_new_tokens[request])
    if finish == RUNNING and generated >= limit and not plan.draft[row]:
        yield (
            f"row {row} goes on with {generated} of {limit} tokens; finish must be "
            f"{LENGTH}, as finish_code says"
        )


def _bad_growth(
    plan: Plan,
    paths: TreePaths,
    row: int,
    grown: dict[int, int],
    named: dict[tuple[int, int], int],
) -> Iterator[str]:
    """Yield what is wrong with how a row goes on.

    Args:
        plan: the plan.
        paths: the forest as the plan finds it, with the rows so far.
        row: the row.
        grown: rows so far that grow a node in place, by node code.
        named: rows so far that make a child with a number, by node code and number.
    """
    node, child = paths.parent_of(row), int(plan.child[row])
    direct = plan.source[row] < paths.num_nodes
    if not plan.branch[row]:
        if plan.draft[row]:
            yield f"row {row} is a draft and must branch"
        if node in grown:
            yield f"rows {grown[node]} and {row} both grow node {node} in place"
        elif (other := paths.child_of(node)) is not None:
            yield f"row {row} grows node {node} in place, which has a child, {other}"
        grown[node] = row
    elif direct and node in grown:
        yield (
            f"row {row} branches from node {node}, which row {grown[node]} grows in "
            "place"
        )
    elif not plan.draft[row] and child >= 0:
        if (node, child) in named:
            yield f"rows {named[node, child]} and {row} both make child {child}"
        named[node, child] = row
