"""Speculative decoding with drafts looked up in the text so far.

The last token is looked for earlier in the text; what followed it there is drafted,
for the latest occurrences at once: a tree of draft paths on one trunk.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategies.protocol import RUNNING, Plan, View
from deft_jax.tree.state import NO_NODE
from tests.support.strategies.common import Example, put, seat


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLookup(Example):
    """One branch, with `paths` draft paths of up to `depth` tokens in every step.

    Row 0 of a request is the trunk's, row `1 + p * depth + d` is token `d` of path `p`.
    """

    depth: int
    paths: int

    @property
    def rows(self) -> int:
        return 1 + self.paths * self.depth

    @property
    def nodes(self) -> int:
        return 1 + self.rows

    @property
    def draft_depth(self) -> int:
        return 1 + self.depth

    def init(self, capacity: Capacity):
        """Return the seats, and the drafted token of each row."""
        seats = jnp.zeros((capacity.requests, self.rows), jnp.int32)
        return seats, jnp.zeros(capacity.rows, jnp.int32)

    def plan(self, state, view: View):
        seats, drafted = seat(state[0], view), state[1]
        in_use = view.roots < view.tree.num_nodes
        tip, known = jax.vmap(self._judge, in_axes=(0, None, None))(
            seats, drafted, view
        )
        drafts = jax.vmap(self._draft, in_axes=(0, None))(tip, view)
        row = jnp.where(in_use[:, None], seats, view.node.shape[0])
        plan = self._write(view, row, tip, drafts)
        plan = dataclasses.replace(
            plan, draft_logprob=put(plan.draft_logprob, row[:, 1:], known)
        )
        return (seats, put(drafted, row[:, 1:], drafts)), plan

    def _judge(self, rows, drafted, view: View):
        """Return which drafts of a request are what its own samples say.

        Returns:
            The row of the last right token, and the log-probabilities of the drafts.
        """
        path = rows[1:].reshape(self.paths, self.depth)
        trunk = jnp.full((self.paths, 1), rows[0])
        above = jnp.concatenate([trunk, path[:, :-1]], axis=1)
        same = (drafted[path] == view.token[above]) & (view.finish[above] == RUNNING)
        right = same & view.is_live[path] & ~view.is_fresh[path]
        length = jnp.sum(jnp.cumprod(right, axis=1), axis=1)
        best = jnp.argmax(length)
        last = path[best, jnp.maximum(length[best] - 1, 0)]
        tip = jnp.where(length[best] > 0, last, rows[0])
        return tip, view.logprob[above].ravel()

    def _draft(self, tip, view: View):
        """Return [paths * depth] tokens to draft after the tip's next; -1 for none."""
        token, length = _path_tokens(view, tip)
        token = token.at[length].set(view.token[tip])
        place = jnp.arange(token.shape[0])
        found = (token == view.token[tip]) & (place < length)
        begin, _ = jax.lax.top_k(jnp.where(found, place, -1), self.paths)
        wanted = begin[:, None] + 1 + jnp.arange(self.depth)[None]
        there = (begin[:, None] >= 0) & (wanted <= length)
        return jnp.where(there, token[wanted], -1).ravel()

    def _write(self, view: View, row, tip, drafts) -> Plan:
        """Return the plan in which the trunk takes the tip's sample, and drafts follow.

        Args:
            view: what the last step left.
            row: [R, S] int32, seats, B for request slots out of use.
            tip: [R] int32, row of the last accepted token.
            drafts: [R, S - 1] int32.
        """
        size, num_rows = view.tree.num_nodes, view.node.shape[0]
        trunk, draft = row[:, 0], row[:, 1:]
        fresh = view.generated[tip] == 0
        runs = (view.finish[tip] == RUNNING)[:, None] & (drafts >= 0)
        nth = jnp.arange(drafts.shape[1]) % self.depth
        above = jnp.where(nth[None] == 0, row[:, :1], row[:, :-1])
        trunk_node = view.node[jnp.minimum(trunk, num_rows - 1)]
        idle = jnp.full(num_rows, NO_NODE)
        source = put(idle, draft, jnp.where(runs, size + above, NO_NODE))
        generated = view.generated[tip] + 1
        later = generated[:, None] + 1 + nth[None]
        request = view.request[tip]
        everyone = jnp.broadcast_to(request[:, None], row.shape)
        branch = put(jnp.ones(num_rows, bool), trunk, fresh)
        return dataclasses.replace(
            Plan.continue_all(view),
            accept=put(idle, trunk, jnp.where(fresh, NO_NODE, view.node[tip])),
            source=put(source, trunk, trunk_node),
            branch=branch,
            draft=put(jnp.ones(num_rows, bool), trunk, jnp.zeros_like(fresh)),
            token=put(put(view.token, draft, drafts), trunk, view.token[tip]),
            logprob=put(view.logprob, trunk, view.logprob[tip]),
            finish=put(jnp.zeros_like(view.finish), trunk, view.finish[tip]),
            request=put(view.request, row, everyone),
            generated=put(put(view.generated, draft, later), trunk, generated),
        )


def _path_tokens(view: View, row):
    """Return [M * P] tokens on the path of a row, by position, and their number.

    A node is on the path if the row's node is in its subtree.
    """
    tree, size = view.tree, view.tree.num_nodes
    node = jnp.minimum(view.node[row], size - 1)
    owner = tree.slot_node.ravel()
    first, end = jnp.append(tree.first, size)[owner], jnp.append(tree.end, size)[owner]
    on_path = (owner < size) & (first <= tree.first[node]) & (tree.first[node] < end)
    place = jnp.where(on_path, tree.slot_position.ravel(), owner.shape[0])
    token = jnp.full(owner.shape[0], -1, jnp.int32)
    token = token.at[place].set(tree.slot_token.ravel(), mode="drop")
    return token, tree.start[node] + tree.count[node]
