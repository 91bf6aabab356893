"""Branches of which the host drops one after the other, by scores of its own."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.strategies.protocol import Plan, View
from deft_jax.tree.state import NO_NODE

Scorer = Callable[[GenerationTree], Mapping[int, float]]


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Waits after every `every` tokens, and drops the branch of the lowest score.

    Of branches with equal scores the one in the last row goes.

    Attributes:
        every: tokens of a round.
    """

    every: int
    draft_depth: int = 1
    may_wait: bool = True

    def init(self, capacity: Capacity) -> tuple[()]:
        return ()

    def plan(self, state: tuple[()], view: View) -> tuple[tuple[()], Plan]:
        assert view.score is not None  # It may wait.
        size, num_rows = view.tree.num_nodes, view.node.shape[0]
        rows = jnp.arange(num_rows)
        due = view.is_live & (view.generated > 0) & (view.generated % self.every == 0)
        score = view.score[jnp.minimum(view.node, size - 1)]
        # Row j goes if it is lower than every other row i of its request.
        others = due[None] & due[:, None] & (rows[None] != rows[:, None])
        others &= view.request[None] == view.request[:, None]
        is_lower = score[None] < score[:, None]
        is_lower |= (score[None] == score[:, None]) & (rows[None] > rows[:, None])
        goes = due & jnp.all(is_lower | ~others, axis=0) & jnp.any(others, axis=0)
        plan, loser = Plan.continue_all(view), jnp.where(goes, view.node, size)
        source = jnp.where(goes, NO_NODE, plan.source)
        waits = (source >= 0) & (plan.generated % self.every == 0)
        num_requests = view.roots.shape[0]
        return state, dataclasses.replace(
            plan,
            prune=plan.prune.at[loser].set(True, mode="drop"),
            source=source,
            wait=jnp.zeros(num_requests, bool)
            .at[jnp.where(waits, view.request, num_requests)]
            .set(True, mode="drop"),
        )


@dataclasses.dataclass(frozen=True)
class HostScored:
    """Branches that a function of the host judges.

    Attributes:
        n: branches.
        every: tokens of a round.
        scorer: returns scores of nodes, given the tree.
    """

    n: int
    every: int
    scorer: Scorer

    @property
    def rows(self) -> int:
        return self.n

    @property
    def nodes(self) -> int:
        return self.n + 1

    @property
    def planner(self) -> Rounds:
        return Rounds(self.every)

    def evaluate(self, tree: GenerationTree) -> Mapping[int, float]:
        return self.scorer(tree)

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        return tree
