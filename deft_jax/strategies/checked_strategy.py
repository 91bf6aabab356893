"""A strategy whose plans the host looks at, every one, for tests."""

from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.strategies.check_plan import check_shapes, find_problems
from deft_jax.strategies.protocol import Plan, Planner, Strategy, View
from deft_jax.strategies.traits import (
    footprint_of,
    may_wait,
    merges_chains,
    node_carry,
    shares_pages,
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

    def pages(self, limit: int, page_size: int) -> int:
        """Return the strategy's pages, or those derived from its nodes."""
        return footprint_of(self._strategy).pages(limit, page_size)

    def evaluate(self, tree: Any) -> Any:
        """Return the scores that the strategy gives nodes while a request waits."""
        strategy: Any = self._strategy
        return strategy.evaluate(tree)

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

    @property
    def merges_chains(self) -> bool:
        """Whether the planner's chains may be merged."""
        return merges_chains(self._planner)

    @property
    def shares_pages(self) -> bool:
        """Whether the planner's children share pages."""
        return shares_pages(self._planner)

    @property
    def node_carry(self) -> Any:
        """What nodes carry at first."""
        return node_carry(self._planner)

    @property
    def may_wait(self) -> bool:
        """Whether the planner's requests may wait for the host."""
        return may_wait(self._planner)

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
        self.problems += list(find_problems(view, plan, self.draft_depth))
