"""Best-first tree search: every node rests, and may get another child much later.

    python examples/best_first.py "The capital of France is" --width 4

Each node offers its likeliest continuations once. A step takes the best offers that are
open anywhere in the tree, however long ago their nodes were fed.
"""

import argparse
import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from deft_jax import (
    NO_NODE,
    RUNNING,
    Capacity,
    DeftError,
    Engine,
    GenerationTree,
    Plan,
    Sampling,
    View,
    finish_code,
    top_k,
)
from deft_jax.models.load import load_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestFirst:
    """Grows the `width` likeliest continuations anywhere in the tree in each step.

    The search ends with the step in which a path ends. The strategy is its own planner,
    and leaves the finished tree as it is.

    Attributes:
        width: new tokens per step, `W` below.
        children: how many of its most probable next tokens each node offers, `C` below.
        nodes: most nodes, of one token each, the root counted.
        draft_depth: levels of rows in a plan; no row continues another.
    """

    width: int
    children: int
    nodes: int
    draft_depth: int = 1

    @property
    def rows(self) -> int:
        """One query row per new token."""
        return self.width

    @property
    def planner(self) -> Self:
        """The strategy itself."""
        return self

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        """Return the tree as it is."""
        return tree

    def init(self, capacity: Capacity) -> dict[str, jax.Array]:
        """Return the rows of each request, and what each node offers.

        A score of -inf stands for no offer.
        """
        offers = (capacity.nodes, self.children)
        return {
            "rows": jnp.zeros((capacity.requests, self.width), jnp.int32),
            "request": jnp.zeros(capacity.nodes, jnp.int32),
            "generated": jnp.zeros(capacity.nodes, jnp.int32),
            "token": jnp.zeros(offers, jnp.int32),
            "logprob": jnp.zeros(offers),
            "score": jnp.full(offers, -jnp.inf),
            "row_score": jnp.zeros(capacity.rows),
        }

    def plan(self, state, view: View):
        """Return the next state, and a plan in which every picked offer is a child."""
        score = jnp.where(view.is_fresh, 0.0, state["row_score"])
        logprob, _ = top_k(jax.nn.log_softmax(view.logits), self.children)
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

    def note_offers(self, state, view: View, score: jax.Array):
        """Return the state with the offers of the nodes that were just fed.

        Args:
            state: the planner's state.
            view: what the planner sees.
            score: [B, children] float32, scores of each row's offers, best first.
        """
        # The fresh rows of a request are all alike: one of them is enough.
        news = view.is_live & (~view.is_fresh | (view.number == 0))
        node = jnp.where(news, view.node, view.tree.num_nodes)
        logprob, token = top_k(jax.nn.log_softmax(view.logits), self.children)
        values = {
            "request": view.request,
            "generated": view.generated,
            "token": token,
            "logprob": logprob,
            "score": score,
        }
        noted = {
            name: state[name].at[node].set(value, mode="drop")
            for name, value in values.items()
        }
        return state | noted | {"rows": note_rows(state["rows"], view)}

    def pick(self, state, view: View) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the best offers of each request, [R * W] each.

        Returns:
            The rows to take them (B for none), their nodes, and which of its node's
            offers each is.
        """
        request = jnp.arange(view.roots.shape[0])[:, None]
        own = view.tree.live[None] & (state["request"][None] == request)
        offers = jnp.where(own[:, :, None], state["score"][None], -jnp.inf)
        best, offer = top_k(offers.reshape(own.shape[0], -1), self.width)
        room = self.nodes - jnp.sum(own, axis=1, keepdims=True)
        used = (best > -jnp.inf) & (jnp.arange(self.width)[None] < room)
        row = jnp.where(used, state["rows"], view.node.shape[0])
        node, nth = jnp.divmod(offer.ravel(), self.children)
        return row.ravel(), node, nth

    def take(self, state, view: View, row, node, nth) -> Plan:
        """Return the plan in which every picked offer becomes a child of its node."""
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
        """Return the state in which offers that were picked are no longer open."""
        size, num_rows = state["score"].shape[0], state["row_score"].shape[0]
        taken = jnp.where(row < num_rows, node, size)
        score = state["score"].at[taken, nth].set(-jnp.inf, mode="drop")
        return state | {"score": score}


def note_rows(rows: jax.Array, view: View) -> jax.Array:
    """Return [R, W] int32: rows of each request slot, noted while they are fresh."""
    request = jnp.where(view.is_fresh, view.request, rows.shape[0])
    own = jnp.arange(view.node.shape[0], dtype=jnp.int32)
    return rows.at[request, view.number].set(own, mode="drop")


def put(default: jax.Array, row: jax.Array, value: jax.Array) -> jax.Array:
    """Return `default` [B] with values [...] at rows [...]; row B is dropped."""
    return default.at[row].set(value.astype(default.dtype), mode="drop")


def main() -> None:
    """Search with the default model, and print the tree."""
    parser = argparse.ArgumentParser(
        description="Best-first tree search with the default model."
    )
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--children", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    arguments = parser.parse_args()
    try:
        engine = Engine(*load_model("smollm2-135m-instruct"))
    except DeftError as error:
        raise SystemExit(str(error)) from None
    search = BestFirst(
        width=arguments.width, children=arguments.children, nodes=arguments.nodes
    )
    sampling = Sampling(max_new_tokens=arguments.max_new_tokens)
    (tree,) = engine.generate(arguments.prompt, search, sampling)
    print(tree.render())


if __name__ == "__main__":
    main()
