"""Best-first tree search: every node rests, and may get another child much later."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategies.protocol import RUNNING, Plan, View, finish_code
from deft_jax.tree.state import NO_NODE
from tests.support.strategies.common import Example, is_fresh, is_live, put, seat


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestFirst(Example):
    """Grows the `width` likeliest continuations anywhere in the tree in each step.

    The search ends with the step in which a path ends.

    Attributes:
        width: new tokens per step.
        children: how many of its most probable next tokens each node offers.
        nodes: most nodes, of one token each, the root counted.
    """

    width: int
    children: int
    nodes: int

    @property
    def rows(self) -> int:
        return self.width

    def init(self, capacity: Capacity):
        """Seats, and what each node offers; a score of -inf is none."""
        offers = (capacity.nodes, self.children)
        return {
            "seats": jnp.zeros((capacity.requests, self.width), jnp.int32),
            "request": jnp.zeros(capacity.nodes, jnp.int32),
            "generated": jnp.zeros(capacity.nodes, jnp.int32),
            "token": jnp.zeros(offers, jnp.int32),
            "logprob": jnp.zeros(offers),
            "score": jnp.full(offers, -jnp.inf),
            "row_score": jnp.zeros(capacity.rows),
        }

    def plan(self, state, view: View):
        score = jnp.where(is_fresh(view), 0.0, state["row_score"])
        logprob = jax.lax.top_k(jax.nn.log_softmax(view.logits), self.children)[0]
        state = self.note_offers(state, view, score[:, None] + logprob)
        row, node, nth = self.pick(state, view)
        plan = self.take(state, view, row, node, nth)
        num_requests = view.roots.shape[0]
        ends = (plan.source >= 0) & (plan.finish != RUNNING)
        ends = jnp.where(ends, plan.request, num_requests)
        stop = jnp.zeros(num_requests, bool).at[ends].set(True, mode="drop")
        row_score = put(state["row_score"], row, state["score"][node, nth])
        state = self.withdraw(state, row, node, nth) | {"row_score": row_score}
        return state, dataclasses.replace(plan, stop=stop)

    def note_offers(self, state, view: View, score):
        """Return the likeliest continuations of the nodes that were just fed.

        Args:
            state: the planner's.
            view: what the last step left.
            score: [B, children] float32, of the offers of each row.
        """
        news = is_live(view) & (~is_fresh(view) | (view.stream == 0))
        node = jnp.where(news, view.node, view.tree.num_nodes)
        best, token = jax.lax.top_k(jax.nn.log_softmax(view.logits), self.children)
        values = {
            "request": view.request,
            "generated": view.generated,
            "token": token,
            "logprob": best,
            "score": score,
        }
        noted = {
            name: state[name].at[node].set(value, mode="drop")
            for name, value in values.items()
        }
        return state | noted | {"seats": seat(state["seats"], view)}

    def pick(self, state, view: View):
        """Return the best offers of each request.

        Returns:
            [R * width] rows to take them (B for none), their nodes, and which of a
            node's offers they are.
        """

        def pick(request, rows):
            own = view.tree.live & (state["request"] == request)
            offers = jnp.where(own[:, None], state["score"], -jnp.inf)
            best, offer = jax.lax.top_k(offers.ravel(), self.width)
            room = self.nodes - jnp.sum(own)
            used = (best > -jnp.inf) & (jnp.arange(self.width) < room)
            return jnp.where(used, rows, view.node.shape[0]), offer

        row, offer = jax.vmap(pick)(jnp.arange(view.roots.shape[0]), state["seats"])
        node, nth = jnp.divmod(offer.ravel(), self.children)
        return row.ravel(), node, nth

    def take(self, state, view: View, row, node, nth) -> Plan:
        """Make every picked offer a child of its node."""
        num_rows = view.node.shape[0]
        token, request = state["token"][node, nth], state["request"][node]
        generated = state["generated"][node] + 1
        finish = finish_code(view.table, token, request, generated)
        return dataclasses.replace(
            Plan.continue_all(view),
            source=put(jnp.full(num_rows, NO_NODE), row, node),
            branch=jnp.ones(num_rows, bool),
            token=put(view.token, row, token),
            logprob=put(view.logprob, row, state["logprob"][node, nth]),
            finish=put(view.finish, row, finish),
            request=put(view.request, row, request),
            generated=put(view.generated, row, generated),
        )

    def withdraw(self, state, row, node, nth):
        """Offers that were picked are no longer open."""
        size, num_rows = state["score"].shape[0], state["row_score"].shape[0]
        taken = jnp.where(row < num_rows, node, size)
        score = state["score"].at[taken, nth].set(-jnp.inf, mode="drop")
        return state | {"score": score}
