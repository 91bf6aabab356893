"""Beam search as a strategy: the beam narrows by one with every hypothesis that ends.

    python examples/beam_search.py "The capital of France is" --width 4

No KV moves: a hypothesis that two others continue becomes an inner node with two
children, one that nobody continues is pruned, and one with a single heir grows in
place. Hypotheses share pages, whose slots are filled again when some are pruned, and
chains of only children are joined when nodes run short. Everything happens on the
device, between two steps of the model.
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
    top_k,
)
from deft_jax.models.load import load_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Keeps the `width` hypotheses with the highest sum of log-probabilities.

    It is its own planner, and leaves the finished tree as it is.

    Attributes:
        width: hypotheses that grow at the same time, `W` below.
        length: tokens a hypothesis may have.
        draft_depth: levels of rows in a plan; no row continues another.
        merges_chains: nodes with one child may be merged, as no number but those of
            rows is held.
        shares_pages: hypotheses store their tokens in the same pages, which are so
            filled by what is left of them.
    """

    width: int
    length: int
    draft_depth: int = 1
    merges_chains: bool = True
    shares_pages: bool = True

    @property
    def rows(self) -> int:
        """One query row per hypothesis."""
        return self.width

    @property
    def nodes(self) -> int:
        """The root, a leaf per hypothesis, the nodes where they part, and room to grow.

        Chains of single children are merged when nodes run short.
        """
        return 1 + 4 * self.width

    def pages(self, limit: int, page_size: int) -> int:
        """Return the pages of all hypotheses, which share them."""
        return -(-self.width * min(self.length, limit) // page_size)

    @property
    def planner(self) -> Self:
        """The strategy itself."""
        return self

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        """Return the tree as it is."""
        return tree

    def init(self, capacity: Capacity):
        """Return the first state.

        Returns:
            [R, W] int32, the rows of each request slot, and [B] float32, the score of
            the hypothesis in each row.
        """
        rows = jnp.zeros((capacity.requests, self.width), jnp.int32)
        return rows, jnp.zeros(capacity.rows)

    def plan(self, state, view: View):
        """Return the next state, and the best continuations of each request."""
        rows, score = state
        rows = note_rows(rows, view)
        score = jnp.where(view.is_fresh, 0.0, score)
        row, parent, token, total = self._pick(rows, score, view)
        idle = jnp.zeros(view.node.shape, jnp.int32)
        used = idle.at[row].set(1, mode="drop") > 0
        parent = idle.at[row].set(parent, mode="drop")
        token = view.token.at[row].set(token, mode="drop")
        score = score.at[row].set(total, mode="drop")
        return (rows, score), _continue(view, used, parent, token)

    def _pick(self, rows: jax.Array, score: jax.Array, view: View):
        """Return the next hypotheses of all requests, [R * W] each.

        A request has as many as it has rows in use.

        Args:
            rows: [R, W] int32, rows of each request slot.
            score: [B] float32, score of each row's hypothesis.
            view: what the planner sees.

        Returns:
            The row that each takes (B for none), the row that it continues, its token
            and its score.
        """
        logprobs = jax.nn.log_softmax(view.logits)
        # The fresh rows of a request are all alike: one of them is enough.
        is_open = view.is_live & (~view.is_fresh | (view.number == 0))
        totals = jnp.where(is_open[:, None], score[:, None] + logprobs, -jnp.inf)
        best, token = top_k(totals, self.width)
        in_use = (view.roots < view.tree.num_nodes)[:, None]
        room = jnp.sum(view.is_live[rows] & in_use, axis=1, keepdims=True)
        # Of W hypotheses with W continuations each, the best W.
        total, place = top_k(best[rows].reshape(rows.shape[0], -1), self.width)
        used = (jnp.arange(self.width)[None] < room) & (total > -jnp.inf)
        row = jnp.where(used, rows, view.node.shape[0])
        parent = jnp.take_along_axis(rows, place // self.width, axis=1)
        token = token[parent, place % self.width]
        return row.ravel(), parent.ravel(), token.ravel(), total.ravel()


def note_rows(rows: jax.Array, view: View) -> jax.Array:
    """Return [R, W] int32: rows of each request slot, noted while they are fresh."""
    request = jnp.where(view.is_fresh, view.request, rows.shape[0])
    own = jnp.arange(view.node.shape[0], dtype=jnp.int32)
    return rows.at[request, view.number].set(own, mode="drop")


def _continue(view: View, used: jax.Array, parent: jax.Array, token: jax.Array) -> Plan:
    """Return the plan in which rows continue others; what none continues is pruned.

    Args:
        view: what the planner sees.
        used: [B] bool, rows that hold a hypothesis.
        parent: [B] int32, row whose hypothesis each continues.
        token: [B] int32, the token that it adds.
    """
    size = view.tree.num_nodes
    plan = Plan.continue_all(view).with_tokens(view, token, after=parent)
    node = jnp.where(used, view.node[parent], size)
    heirs = jnp.zeros(size + 1, jnp.int32).at[node].add(1)
    running = jnp.where(plan.finish == RUNNING, node, size)
    goes_on = jnp.zeros(size, bool).at[running].set(True, mode="drop")
    held = jnp.zeros(size, bool).at[view.node].set(True, mode="drop")
    return dataclasses.replace(
        plan,
        prune=held & ~goes_on,
        source=jnp.where(used, node, NO_NODE),
        branch=(heirs[node] > 1) | (plan.generated == 1),
    )


def main() -> None:
    """Search with the default model, and print what was found."""
    parser = argparse.ArgumentParser(description="Beam search with the default model.")
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--length", type=int, default=12)
    arguments = parser.parse_args()
    try:
        engine = Engine(*load_model("smollm2-135m-instruct"))
    except DeftError as error:
        raise SystemExit(str(error)) from None
    search = BeamSearch(width=arguments.width, length=arguments.length)
    sampling = Sampling(max_new_tokens=arguments.length)
    (tree,) = engine.generate(arguments.prompt, search, sampling)
    ended = [leaf for leaf in tree.leaves() if leaf.finish_reason != "pruned"]
    for leaf in sorted(ended, key=tree.mean_logprob, reverse=True):
        print(f"{tree.mean_logprob(leaf):7.3f}  {tree.path_text(leaf)!r}")


if __name__ == "__main__":
    main()
