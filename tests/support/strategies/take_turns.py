"""Parallel sampling one branch after the other: the others rest."""

import dataclasses

import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.protocol import RUNNING, Plan, View
from deft_jax.tree.state import NO_NODE, choose
from tests.support.strategies.common import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakeTurns(Example):
    """The `n` branches of best-of-n, each grown to its end before the next begins."""

    n: int

    @property
    def rows(self) -> int:
        return BestOfN(self.n).rows

    @property
    def nodes(self) -> int:
        return BestOfN(self.n).nodes

    def init(self, capacity: Capacity):
        """Return the plan of `continue_all` for each row, not carried out yet."""
        rest = jnp.zeros(capacity.rows, jnp.int32)
        return {
            "source": rest + NO_NODE,
            "branch": rest > 0,
            "token": rest,
            "logprob": jnp.zeros(capacity.rows),
            "finish": rest,
            "request": rest,
            "child": rest,
            "generated": rest,
        }

    def plan(self, state, view: View):
        fresh = Plan.continue_all(view)
        new = {name: getattr(fresh, name) for name in state}
        state = {name: choose(view.is_live, new[name], state[name]) for name in state}
        rests = state["source"] >= 0
        alive = jnp.append(view.tree.live, False)[state["source"]]
        now = rests & alive & self._has_turn(state, rests & alive)
        plan = dataclasses.replace(fresh, **state)
        source = jnp.where(now, state["source"], NO_NODE)
        later = jnp.where(now, NO_NODE, state["source"])
        rest = jnp.where(later < 0, view.tree.num_nodes, later)
        keep = plan.keep.at[rest].set(True, mode="drop")
        plan = dataclasses.replace(plan, source=source, keep=keep)
        return state | {"source": later}, plan

    def _has_turn(self, state, rests):
        """Return [B] bool, the first running row of each request, and all that end.

        A request without a running row would end, so that rows that end go alongside.
        """
        runs = rests & (state["finish"] == RUNNING)
        rows = jnp.arange(rests.shape[0])
        ahead = (rows[None] < rows[:, None]) & runs[None]
        same = state["request"][None] == state["request"][:, None]
        return ~runs | ~jnp.any(ahead & same, axis=1)
