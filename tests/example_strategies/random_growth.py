"""A tree that grows, rests and is pruned at random: any path must still be right."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategy import RUNNING, Plan, View
from tests.example_strategies.best_first import BestFirst
from tests.example_strategies.common import is_fresh, put


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomGrowth(BestFirst):
    """Takes random offers, in place where it may, and prunes random subtrees.

    Attributes:
        steps: after which a request ends.
    """

    steps: int

    def init(self, capacity: Capacity):
        """Adds, per node, whether it ever branched and whether the last plan kept it;
        the age of each request; and a count of kept nodes that were gone."""
        no = jnp.zeros(capacity.nodes, bool)
        return super().init(capacity) | {
            "branched": no,
            "kept": no,
            "age": jnp.zeros(capacity.requests, jnp.int32),
            "clock": jnp.int32(0),
            "lost": jnp.int32(0),
        }

    def plan(self, state, view: View):
        key = jax.random.fold_in(jax.random.key(0), state["clock"])
        state = self._age(state, view)
        shape = (view.node.shape[0], self.children)
        state = self.note_offers(state, view, jax.random.uniform(key, shape))
        row, node, nth = self.pick(state, view)
        plan = self.take(state, view, row, node, nth)
        in_place = self._may_grow(state, view, plan) & jax.random.bernoulli(
            key, 0.6, plan.branch.shape
        )
        victims = self._victims(key, view, state, plan)
        stop = state["age"] >= self.steps
        plan = dataclasses.replace(plan, branch=~in_place, prune=victims, stop=stop)
        state = self.withdraw(state, row, node, nth)
        keep = self._keep(state, view, plan)
        branched = put(
            state["branched"],
            jnp.where((plan.source >= 0) & plan.branch, plan.source, shape[0] ** 2),
            jnp.ones(shape[0], bool),
        )
        state |= {"kept": keep, "branched": branched}
        return state, dataclasses.replace(plan, keep=keep)

    def _age(self, state, view: View):
        """One step older; nodes that were just made have never branched."""
        new = jnp.where(view.node < view.tree.num_nodes, view.node, view.tree.num_nodes)
        fresh = jnp.where(is_fresh(view), view.request, view.roots.shape[0])
        gone = state["kept"] & ~view.tree.live
        return state | {
            "branched": state["branched"].at[new].set(False, mode="drop"),
            "age": state["age"].at[fresh].set(-1, mode="drop") + 1,
            "clock": state["clock"] + 1,
            "lost": state["lost"] + jnp.sum(gone, dtype=jnp.int32),
        }

    def _may_grow(self, state, view: View, plan: Plan):
        """[B] bool: rows that alone continue a node that never branched, no prompt."""
        node = jnp.maximum(plan.source, 0)
        picks = jnp.zeros(view.tree.num_nodes, jnp.int32)
        picks = picks.at[node].add(jnp.where(plan.source >= 0, 1, 0))
        made = view.tree.parent[node] >= 0
        return (picks[node] == 1) & ~state["branched"][node] & made

    def _victims(self, key, view: View, state, plan: Plan):
        """[N] bool: some nodes that no row continues and no continued node is below."""
        tree = view.tree
        first = tree.first[jnp.maximum(plan.source, 0)]
        inside = (tree.first[:, None] <= first[None]) & (
            first[None] < tree.end[:, None]
        )
        needed = jnp.any(inside & (plan.source >= 0)[None], axis=1)
        chosen = jax.random.bernoulli(key, 0.1, tree.parent.shape)
        return tree.live & (tree.parent >= 0) & ~needed & chosen

    def _keep(self, state, view: View, plan: Plan):
        """[N] bool: nodes with open offers, of requests that go on."""
        tree = view.tree
        runs = (plan.source >= 0) & (plan.finish == RUNNING)
        runs = runs & ~plan.stop[jnp.minimum(plan.request, plan.stop.shape[0] - 1)]
        request = jnp.where(runs, plan.request, plan.stop.shape[0])
        goes_on = jnp.zeros(plan.stop.shape, bool).at[request].set(True, mode="drop")
        inside = (tree.first[None] <= tree.first[:, None]) & (
            tree.first[:, None] < tree.end[None]
        )
        dead = jnp.any(inside & plan.prune[None], axis=1)
        ends = jnp.zeros(tree.num_nodes, bool)
        done = (plan.source >= 0) & ~plan.branch & (plan.finish != RUNNING)
        ends = ends.at[jnp.where(done, plan.source, tree.num_nodes)].set(
            True, mode="drop"
        )
        offers = jnp.any(state["score"] > -jnp.inf, axis=1)
        return tree.live & offers & goes_on[state["request"]] & ~dead & ~ends
