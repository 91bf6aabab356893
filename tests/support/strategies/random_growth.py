"""A tree that grows, rests and is pruned at random: any path must still be right."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategies.protocol import RUNNING, Plan, View
from deft_jax.tree.state import Tree
from examples.best_first import BestFirst


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomGrowth(BestFirst):
    """Takes random offers, in place where it may, and prunes random subtrees.

    Nodes carry how many tokens were generated down to them.

    Attributes:
        steps: after which a request ends.
    """

    steps: int
    node_carry: int = 0

    def init(self, capacity: Capacity):
        """Return more state than that of a search.

        It holds, per node, whether it ever branched and whether the last plan kept it;
        the age of each request; and counts of kept nodes that were gone and of rows
        whose node carried a wrong number.
        """
        no = jnp.zeros(capacity.nodes, bool)
        return super().init(capacity) | {
            "branched": no,
            "kept": no,
            "age": jnp.zeros(capacity.requests, jnp.int32),
            "clock": jnp.int32(0),
            "lost": jnp.int32(0),
            "wrong": jnp.int32(0),
        }

    def plan(self, state, view: View):
        key = jax.random.fold_in(jax.random.key(0), state["clock"])
        keys = jax.random.split(key, 3)
        state = self._age(state, view)
        offers = (view.node.shape[0], self.children)
        state = self.note_offers(state, view, jax.random.uniform(keys[0], offers))
        row, node, nth = self.pick(state, view)
        state = self.withdraw(state, row, node, nth)
        plan = self.take(state, view, row, node, nth)
        wants = jax.random.bernoulli(keys[1], 0.6, plan.branch.shape)
        plan = dataclasses.replace(
            plan,
            branch=~(wants & _may_grow(view.tree, plan, state["branched"])),
            prune=_victims(keys[2], view.tree, plan),
            stop=state["age"] >= self.steps,
        )
        carry = view.carry[jnp.maximum(plan.source, 0)] + 1
        wrong = jnp.sum(_is_used(plan) & (carry != plan.generated), dtype=jnp.int32)
        state = state | {"wrong": state["wrong"] + wrong}
        plan = dataclasses.replace(
            plan, keep=self._keep(state, view.tree, plan), carry=carry
        )
        return self._note_branches(state, view.tree, plan), plan

    def _age(self, state, view: View):
        """Return the state one step older; new nodes have never branched."""
        fresh = jnp.where(view.is_fresh, view.request, view.roots.shape[0])
        gone = state["kept"] & ~view.tree.live
        return state | {
            "branched": state["branched"].at[view.node].set(False, mode="drop"),
            "age": state["age"].at[fresh].set(-1, mode="drop") + 1,
            "clock": state["clock"] + 1,
            "lost": state["lost"] + jnp.sum(gone, dtype=jnp.int32),
        }

    def _note_branches(self, state, tree: Tree, plan: Plan):
        parent = jnp.where(plan.branch & _is_used(plan), plan.source, tree.num_nodes)
        branched = state["branched"].at[parent].set(True, mode="drop")
        return state | {"branched": branched, "kept": plan.keep}

    def _keep(self, state, tree: Tree, plan: Plan):
        """Return [N] bool, nodes with open offers of requests that go on."""
        num_requests = plan.stop.shape[0]
        stops = plan.stop[jnp.minimum(plan.request, num_requests - 1)]
        runs = _is_used(plan) & (plan.finish == RUNNING) & ~stops
        request = jnp.where(runs, plan.request, num_requests)
        goes_on = jnp.zeros(num_requests, bool).at[request].set(True, mode="drop")
        dead = jnp.any(_is_below(tree, tree.first) & plan.prune[:, None], axis=0)
        ends = _is_used(plan) & ~plan.branch & (plan.finish != RUNNING)
        dead = dead.at[jnp.where(ends, plan.source, tree.num_nodes)].set(
            True, mode="drop"
        )
        offers = jnp.any(state["score"] > -jnp.inf, axis=1)
        return tree.live & offers & goes_on[state["request"]] & ~dead


def _is_used(plan: Plan):
    """Return [B] bool, true for rows that are not idle."""
    return plan.source >= 0


def _is_below(tree: Tree, first):
    """Return [N, K] bool, true where number `first[k]` is below node `n`."""
    return (tree.first[:, None] <= first[None]) & (first[None] < tree.end[:, None])


def _may_grow(tree: Tree, plan: Plan, branched):
    """Return [B] bool, rows that alone continue a node that never branched."""
    node = jnp.maximum(plan.source, 0)
    picks = jnp.zeros(tree.num_nodes, jnp.int32)
    picks = picks.at[node].add(jnp.where(_is_used(plan), 1, 0))
    return (picks[node] == 1) & ~branched[node] & (tree.parent[node] >= 0)


def _victims(key, tree: Tree, plan: Plan):
    """Return [N] bool, random nodes, but no prompts and nothing above a row."""
    first = tree.first[jnp.maximum(plan.source, 0)]
    needed = jnp.any(_is_below(tree, first) & _is_used(plan)[None], axis=1)
    chosen = jax.random.bernoulli(key, 0.1, tree.parent.shape)
    return tree.live & (tree.parent >= 0) & ~needed & chosen
