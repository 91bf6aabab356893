"""Many wrong planners, checked by one compiled program."""

from typing import Any, Self

from deft_jax.capacity import Capacity
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.strategies.checked_strategy import checked
from deft_jax.strategies.protocol import Plan, Planner, Strategy, View


class CheckedCases:
    """Strategies whose equal planners differ in their first state alone.

    `checked` compiles anew for every strategy that it is given. It is given this one,
    whose planner starts as that of the case at hand.
    """

    def __init__(self, first: Strategy):
        self._case = first
        self._traced: Planner = first.planner
        self._checked = checked(self)

    def take(self, case: Strategy) -> Strategy:
        """Return the checked strategy, which now does what the case does."""
        assert case.planner == self._traced
        self._case = case
        return self._checked

    @property
    def planner(self) -> Self:
        return self

    @property
    def draft_depth(self) -> int:
        return self._traced.draft_depth

    @property
    def rows(self) -> int:
        return self._case.rows

    @property
    def nodes(self) -> int:
        return self._case.nodes

    def init(self, capacity: Capacity) -> Any:
        return self._case.planner.init(capacity)

    def plan(self, state: Any, view: View) -> tuple[Any, Plan]:
        return self._traced.plan(state, view)

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        return self._case.conclude(tree)
