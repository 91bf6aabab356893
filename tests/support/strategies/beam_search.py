"""Beam search: the beam narrows by one with every hypothesis that ends."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategies.protocol import RUNNING, Plan, View, finish_code
from deft_jax.tree.state import NO_NODE
from tests.support.strategies.common import Example, is_fresh, is_live, put, seat


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch(Example):
    """Keeps the `width` hypotheses with the highest sum of log-probabilities.

    Attributes:
        width: hypotheses that grow at the same time.
        length: tokens a hypothesis may have.
    """

    width: int
    length: int

    @property
    def rows(self) -> int:
        return self.width

    @property
    def nodes(self) -> int:
        """The root, and at most one node per token of every hypothesis."""
        return 1 + self.width * self.length

    def init(self, capacity: Capacity):
        seats = jnp.zeros((capacity.requests, self.width), jnp.int32)
        return seats, jnp.zeros(capacity.rows)

    def plan(self, state, view: View):
        seats, score = seat(state[0], view), jnp.where(is_fresh(view), 0.0, state[1])
        logprobs = jax.nn.log_softmax(view.logits)
        # The fresh rows of a request are all alike: one of them is enough.
        open_rows = is_live(view) & (~is_fresh(view) | (view.stream == 0))
        totals = jnp.where(open_rows[:, None], score[:, None] + logprobs, -jnp.inf)
        best, token = jax.lax.top_k(totals, self.width)
        taken = is_live(view)[seats] & (view.roots < view.tree.num_nodes)[:, None]
        picks = jax.vmap(_pick, in_axes=(0, 0, None, None))(seats, taken, best, token)
        row, parent, token, total = (x.ravel() for x in picks)
        plan = _continue(view, logprobs, row, parent, token)
        return (seats, put(score, row, total)), plan


def _pick(rows, taken, best, token):
    """Return a request's next hypotheses, as many as rows are `taken`; [S] each.

    Returns:
        The row each takes (B for none), the row it continues, its token and its score.
    """
    width = rows.shape[0]
    total, index = jax.lax.top_k(best[rows].ravel(), width)
    used = (jnp.arange(width) < jnp.sum(taken)) & (total > -jnp.inf)
    row = jnp.where(used, rows, best.shape[0])
    return row, rows[index // width], token[rows].ravel()[index], total


def _continue(view: View, logprobs, row, parent, token) -> Plan:
    """Rows [...] continue `parent` rows with tokens; what none continues is pruned.

    A node that two continue is branched from, one with a single heir grows in place.
    """
    size, num_rows = view.tree.num_nodes, view.node.shape[0]
    generated = view.generated[parent] + 1
    finish = finish_code(view.table, token, view.request[parent], generated)
    used = row < num_rows
    node = jnp.where(used, view.node[parent], size)
    heirs = jnp.zeros(size, jnp.int32).at[node].add(1, mode="drop")
    goes_on = jnp.zeros(size, bool).at[node].max(finish == RUNNING, mode="drop")
    held = jnp.zeros(size, bool).at[view.node].set(True, mode="drop")
    shared = jnp.append(heirs, 0)[node] > 1
    return dataclasses.replace(
        Plan.continue_all(view),
        prune=held & ~goes_on,
        source=put(jnp.full(num_rows, NO_NODE), row, node),
        branch=put(
            jnp.zeros(num_rows, bool), row, shared | (view.generated[parent] == 0)
        ),
        token=put(view.token, row, token),
        logprob=put(view.logprob, row, logprobs[parent, token]),
        finish=put(view.finish, row, finish),
        request=put(view.request, row, view.request[parent]),
        generated=put(view.generated, row, generated),
    )
