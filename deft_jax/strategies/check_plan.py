"""Checks of a plan on the host, for whoever writes a planner.

The decode loop checks nothing that would cost time: a row that asks for the impossible
is idle there, and one that asks for the wrong thing gives wrong text.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.errors import DeftError
from deft_jax.strategies.protocol import (
    LENGTH,
    RUNNING,
    STOP,
    Plan,
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
    for problem in find_problems(view, plan, draft_depth):
        raise DeftError(problem)


def check_shapes(view: View, plan: Plan) -> None:
    """Check the shapes and dtypes of a plan, whose arrays may be traced.

    Raises:
        DeftError: an array is not what `Plan` says.
    """
    expected = vars(jax.eval_shape(_all_given, view))
    if plan.wait is not None and view.score is None:
        raise DeftError(
            "the plan's wait must be None, since the planner's may_wait is not true"
        )
    for name, right in expected.items():
        got = getattr(plan, name)
        if got is None and name in ("carry", "wait"):
            continue
        places, structure = jax.tree.flatten_with_path(right)
        if jax.tree.structure(got) != structure:
            raise DeftError(
                f"the plan's {name} must be {structure}, got {jax.tree.structure(got)}"
            )
        for (path, one), other in zip(places, jax.tree.leaves(got), strict=True):
            other = other if hasattr(other, "shape") else np.asarray(other)
            if (other.shape, other.dtype) != (one.shape, one.dtype):
                raise DeftError(
                    f"the plan's {name}{jax.tree_util.keystr(path)} must be "
                    f"{one.dtype}{list(one.shape)}, got {other.dtype}"
                    f"{list(other.shape)}"
                )


def _all_given(view: View) -> Plan:
    """Return a plan in which every field is given."""
    return dataclasses.replace(
        Plan.continue_all(view),
        carry=jax.tree.map(lambda x: x[view.node], view.carry),
        wait=jnp.zeros(view.roots.shape, bool),
    )


def find_problems(view: View, plan: Plan, draft_depth: int) -> Iterator[str]:
    """Yield what is wrong with a plan of NumPy arrays, the rows in order."""
    paths = TreePaths(view, plan)
    yield from _bad_tips_and_prunes(view, plan, paths)
    growth = _Growth()
    level = np.zeros(len(plan.source), int)
    for row in np.flatnonzero(plan.source != NO_NODE).tolist():
        found = list(_bad_source(plan, paths, row, level, draft_depth))
        found = found or list(_bad_token(view, plan, paths, row))
        found = found or list(growth.problems(plan, paths, row, level[row]))
        yield from found
        if not found:
            paths.place(row)


def _bad_tips_and_prunes(view: View, plan: Plan, paths: TreePaths) -> Iterator[str]:
    """Yield what is wrong with the nodes that a plan accepts and prunes."""
    live, trunks = view.tree.live, {}
    for row, tip in enumerate(plan.accept.tolist()):
        if tip == NO_NODE:
            continue
        if not 0 <= tip < len(live) or not live[tip]:
            yield f"row {row} accepts node {tip}, which is not live"
            continue
        trunk = int(view.tree.trunk[tip])
        if trunk in trunks:
            yield (
                f"rows {trunks[trunk]} and {row} accept drafts of one trunk, "
                f"node {trunk}; accept one tip"
            )
        trunks[trunk] = row
        for child in paths.overrun(tip):
            yield (
                f"row {row} accepts node {tip}, so that node {trunk} grows; a node "
                f"above the tip has child {child}, which is no draft and would be lost"
            )
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


class _Growth:
    """How the rows so far go on: in place, or in a child of the node they continue.

    Rows of one level find the same forest, in which a node that one of them grows has
    its new token already, or not: neither is what a row that branches there wants.
    """

    def __init__(self):
        """Start without a row."""
        self._grown: dict[int, tuple[int, int]] = {}
        self._branched: dict[tuple[int, int], int] = {}
        self._named: dict[tuple[int, int], int] = {}

    def problems(
        self, plan: Plan, paths: TreePaths, row: int, level: int
    ) -> Iterator[str]:
        """Yield what is wrong with how a row goes on, and note how it does.

        Args:
            plan: what the planner asks for.
            paths: the forest as the plan finds it, with the rows so far.
            row: number of the row.
            level: level of the row: 1 for a row that continues a node of the tree.
        """
        node, child = paths.parent_of(row), int(plan.child[row])
        named = self._named.get((node, child))
        if not plan.branch[row]:
            yield from self._in_place(plan, paths, row, level)
            self._grown[node] = row, level
            return
        self._branched.setdefault((node, level), row)
        grower, at_level = self._grown.get(node, (row, 0))
        if at_level == level:
            yield (
                f"row {row} branches from {paths.name(node)}, which row {grower} grows "
                "in place"
            )
        elif not plan.draft[row] and child >= 0:
            if named is not None:
                yield f"rows {named} and {row} both make child {child}"
            self._named[node, child] = row

    def _in_place(
        self, plan: Plan, paths: TreePaths, row: int, level: int
    ) -> Iterator[str]:
        """Yield what is wrong with a row that continues a node in the node itself."""
        node = paths.parent_of(row)
        if plan.draft[row]:
            yield f"row {row} is a draft and must branch"
        name = paths.name(node)
        if node in self._grown:
            yield f"rows {self._grown[node][0]} and {row} both grow {name} in place"
        elif (other := paths.child_of(node)) is not None:
            yield f"row {row} grows {name} in place, which has a child, {other}"
        elif (brancher := self._branched.get((node, level))) is not None:
            yield f"row {row} grows {name} in place, from which row {brancher} branches"
