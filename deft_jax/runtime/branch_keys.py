"""The sampling keys of nodes, which say where in its tree a branch came into being."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from deft_jax.sampling.noise import ROOT_KEY, child_key
from deft_jax.strategies.protocol import Plan
from deft_jax.tree.counting import earlier_equal, largest, tally
from deft_jax.tree.relabel import Relabelling


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchKeys:
    """Keys by which branches draw different tokens from the same logits.

    A root has `ROOT_KEY`, or the key that its request names; child number `i` of a node
    has `child_key(key, i)`, and a draft the key of its parent, so that it is judged by
    the tokens that its trunk would draw.

    Attributes:
        key: [N] uint32, key of each live node.
        children: [N] int32, children that each live node has had, drafts not counted.
    """

    key: jax.Array
    children: jax.Array

    @classmethod
    def create(cls, num_nodes: int) -> Self:
        """Return the keys of an empty forest."""
        key = jnp.full(num_nodes, ROOT_KEY, jnp.uint32)
        return cls(key, jnp.zeros(num_nodes, jnp.int32))

    def with_roots(self, root: jax.Array, root_key: jax.Array) -> Self:
        """Return the keys with those of new roots.

        Args:
            root: [R] int32, the new roots, N for none.
            root_key: [R] uint32, their keys.
        """
        key = self.key.at[root].set(root_key, mode="drop")
        return type(self)(key, self.children.at[root].set(0, mode="drop"))

    def relabelled(self, relabelling: Relabelling) -> Self:
        """Return the keys after nodes were split.

        All parts of a node were drawn with its key. A child that is added to a part
        above gets no number that a child of the last part has.
        """
        origin = relabelling.origin
        return type(self)(self.key[origin], self.children[origin])

    def of_rows(
        self, node: jax.Array, number: jax.Array, generated: jax.Array
    ) -> jax.Array:
        """Return the keys with which rows draw their next tokens.

        A fresh row is to become the child of the prompt that has its number.

        Args:
            node: [B] int32, node of each row; any key for N.
            number: [B] int32, number of the row within its request.
            generated: [B] int32, tokens generated on the row's path; 0 if it is fresh.

        Returns:
            [B] uint32.
        """
        key = self.key[jnp.minimum(node, self.key.shape[0] - 1)]
        return jnp.where(generated == 0, child_key(key, number), key)

    def grown(self, plan: Plan, node: jax.Array, draft_depth: int) -> Self:
        """Return the keys with those of the nodes that a plan adds.

        Args:
            plan: what the rows continue, and how.
            node: [B] int32, node of each row's token, N for none.
            draft_depth: levels of rows that continue rows of the plan.
        """
        size, num_rows = self.key.shape[0], node.shape[0]
        rows = jnp.arange(num_rows, dtype=jnp.int32)
        new = largest(jnp.where(plan.branch, node, size), size, rows)
        is_row = plan.source >= size
        above = jnp.where(is_row, plan.source - size, 0)
        parent = jnp.where(is_row, node[above], plan.source)
        # A row that ends at once is a child as well. Where its parent is gone, and a
        # new node has the parent's number, there is nothing to count.
        adds = (plan.source >= 0) & plan.branch & ~plan.draft
        adds &= is_row | (new[jnp.clip(plan.source, 0, size - 1)] < 0)
        number, children = self._number(parent, adds, plan.child, new)
        old = self.key[jnp.clip(plan.source, 0, size - 1)]
        key = old
        for _ in range(draft_depth):
            own = jnp.where(is_row, key[above], old)
            key = jnp.where(adds, child_key(own, number), own)
        key = jnp.where(new >= 0, key[jnp.maximum(new, 0)], self.key)
        return type(self)(key, children)

    def _number(
        self, parent: jax.Array, adds: jax.Array, child: jax.Array, new: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the numbers of the rows that add a child, and the nodes' counts.

        Numbers that the plan does not give go on from the largest there is:

            children 2, child 4 -1 -1  ->  number 4 5 6, children 7

        Args:
            parent: [B] int32, node of each row's parent.
            adds: [B] bool, true for rows that add a child that is no draft.
            child: [B] int32, number that the plan gives it; below 0 for none.
            new: [N] int32, row that adds the node; below 0 for none.
        """
        size = new.shape[0]
        named = adds & (child >= 0)
        counted = adds & ~named
        children = jnp.where(new >= 0, 0, self.children)
        children = jnp.maximum(
            children, largest(jnp.where(named, parent, size), size, child + 1)
        )
        next_number = children[jnp.clip(parent, 0, size - 1)]
        next_number += earlier_equal(parent, counted)
        children += tally(jnp.where(counted, parent, size), size)
        return jnp.where(named, child, next_number), children
