"""What a search strategy sees after a step and what it may ask for before the next.

A strategy's planner lives inside the jitted decode loop: `plan` is traced once and runs
on the device between steps. Parallel sampling continues every row in place; beam search
branches from the rows it keeps and prunes the others; tree search prunes nodes or
leaves them resting and continues any live node later; speculative decoding adds rows
for drafted tokens and accepts a path of them.
"""

import dataclasses
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.results.tree_node import FinishReason
from deft_jax.sampling.request_table import RequestTable
from deft_jax.tree.state import NO_NODE, Tree

RUNNING = 0
"""Finish code of a row that goes on."""

STOP = 1
"""Finish code: the row's last token ends the text."""

LENGTH = 2
"""Finish code: the row has as many tokens as it may."""

NO_CHILD = -1
"""`Plan.child` of rows whose child takes the next number that is free."""

FINISH_REASONS: dict[int, FinishReason] = {STOP: "stop", LENGTH: "length"}
"""Names of the finish codes in results."""


def finish_code(
    table: RequestTable, token: jax.Array, request: jax.Array, generated: jax.Array
) -> jax.Array:
    """Return the finish codes of branches that take a token, [...] int32.

    Args:
        table: limits and ends of the requests.
        token: [...] int32, the tokens.
        request: [...] int32, request slot of each; out of range counts as the nearest.
        generated: [...] int32, tokens on the branch with this one.
    """
    request = jnp.clip(request, 0, table.max_new_tokens.shape[0] - 1)
    # No token of a planner, NO_END among them, is what fills the table.
    ends = jnp.any(token[..., None] == table.eos[request], axis=-1) & (token >= 0)
    full = generated >= table.max_new_tokens[request]
    return jnp.where(ends, STOP, jnp.where(full, LENGTH, RUNNING))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What a planner sees.

    A row is a query token of the last step, or a fresh row at the root of a prompt that
    was just read.

    A request keeps the rows it began with until it ends; a planner that lets some of
    them idle and uses them again notes which they are while they are fresh.

    Attributes:
        tree: the forest, as far as it is of requests in turn: other nodes seem to be
            free. Their roots seem to have no parent, and may start behind tokens that
            they share with others.
        table: what the host says of the requests, for `finish_code` of tokens that were
            not sampled.
        node: [B] int32, node of each row, N for idle rows.
        request: [B] int32, request slot of each row, R for idle rows.
        number: [B] int32, number of the row within its request, from 0; a row keeps it
            as long as the request has the row.
        generated: [B] int32, tokens generated on the row's path; 0 for a fresh row.
        logits: [B, V] float32, of the token that follows each row.
        token: [B] int32, the token sampled for each row.
        logprob: [B] float32, its natural log-probability under `logits`.
        finish: [B] int32, finish code of each row if it takes its sampled token.
        roots: [R] int32, root of each request slot, N for free slots. It need not be a
            root of the forest: a request may start below a node of others.
        carry: what the planner lets nodes carry, each array [N, ...]; see
            `traits.node_carry`. () for a planner that has none.
        score: [N] float32, what the host has said of each node when the request waited
            for it (`Plan.wait`), NaN where it has said nothing; None for a planner that
            never waits.
    """

    tree: Tree
    table: RequestTable
    node: jax.Array
    request: jax.Array
    number: jax.Array
    generated: jax.Array
    logits: jax.Array
    token: jax.Array
    logprob: jax.Array
    finish: jax.Array
    roots: jax.Array
    carry: Any = ()
    score: jax.Array | None = None

    @property
    def is_live(self) -> jax.Array:
        """[B] bool, true for rows that hold a token."""
        return self.node < self.tree.num_nodes

    @property
    def is_fresh(self) -> jax.Array:
        """[B] bool, true for rows at the root of a prompt that was just read."""
        return self.is_live & (self.generated == 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """What a planner asks for, applied in this order: accept, prune, branch, append.

    A planner may let a node rest and continue it in a later plan. A node that is left
    without a leaf below it is freed unless the plan continues or keeps it. A request
    ends when no row of it runs in a plan, whatever rests, or when `stop` says so; its
    nodes are then freed.

    The decode loop leaves out what cannot be: a row is idle if its source is no live
    node and no earlier row of the plan that takes part, or if its token is not in the
    vocabulary. A branch with `max_new_tokens` tokens ends, whatever `finish` says.

    Attributes:
        accept: [B] int32, tips of draft paths to keep (`tree.accept`), else NO_NODE;
            nodes above a tip must have no children but drafts.
        draft_logprob: [B] float32, log-probability of the draft that each row of the
            view holds, now that it is known; for the result, if it is accepted.
        prune: [N] bool, nodes to drop with all below them.
        keep: [N] bool, nodes to keep although all below them is dropped or finished.
        source: [B] int32, node that each row continues; N + j stands for the node of
            row j < own row of this plan, its token included; NO_NODE leaves the row
            idle.
        branch: [B] bool, true to continue in a new child, false in the node itself,
            which must never have had a child but drafts.
        draft: [B] bool, true for children to be accepted or dropped later.
        token: [B] int32, next token of each row.
        logprob: [B] float32, its log-probability, for the result.
        finish: [B] int32, finish code; a row that finishes records its token, which is
            not fed to the model, and frees its node.
        request: [B] int32, request slot of each row.
        child: [B] int32, for a row that branches: number of the new child among all
            that its node has ever had, which fixes what is drawn below it; NO_CHILD
            goes on from the largest so far, in the order of the rows.
        generated: [B] int32, tokens on the row's path with this one.
        stop: [R] bool, requests that end now; their rows record their tokens.
        carry: what the node of each row carries from now on, each array [B, ...]; None
            lets it carry what the node did that the row continues.
        wait: [R] bool, requests that do not go on before the host has told them scores,
            with the tokens of this plan; None for none. Only for a planner that
            `traits.may_wait` knows.
    """

    accept: jax.Array
    draft_logprob: jax.Array
    prune: jax.Array
    keep: jax.Array
    source: jax.Array
    branch: jax.Array
    draft: jax.Array
    token: jax.Array
    logprob: jax.Array
    finish: jax.Array
    request: jax.Array
    child: jax.Array
    generated: jax.Array
    stop: jax.Array
    carry: Any = None
    wait: jax.Array | None = None

    @classmethod
    def continue_all(cls, view: View) -> "Plan":
        """Return the plan in which every row takes its sampled token.

        Fresh rows branch, others go on in place. This is the start of most plans:
        change what differs with `with_tokens` and `dataclasses.replace`.
        """
        live = view.is_live
        return cls(
            accept=jnp.full_like(view.node, NO_NODE),
            draft_logprob=jnp.zeros_like(view.logprob),
            prune=jnp.zeros(view.tree.num_nodes, bool),
            keep=jnp.zeros(view.tree.num_nodes, bool),
            source=jnp.where(live, view.node, NO_NODE),
            branch=view.generated == 0,
            draft=jnp.zeros_like(live),
            token=view.token,
            logprob=view.logprob,
            finish=view.finish,
            request=view.request,
            child=jnp.where(view.is_fresh, view.number, NO_CHILD),
            generated=view.generated + 1,
            stop=jnp.zeros(view.roots.shape, bool),
        )

    def with_tokens(
        self, view: View, token: jax.Array, after: jax.Array | None = None
    ) -> Self:
        """Return the plan with other tokens, and all that follows from them.

        Args:
            view: what the planner saw.
            token: [B] int32, next token of each row.
            after: [B] int32, row of the view that each token follows; each row's own if
                None. Out of range counts as the nearest.

        Returns:
            The plan with `token`, its log-probability under the model, the number of
            tokens on the path, the request and the finish code.
        """
        rows = jnp.arange(view.node.shape[0], dtype=jnp.int32)
        after = rows if after is None else jnp.clip(after, 0, rows.shape[0] - 1)
        generated = view.generated[after] + 1
        return dataclasses.replace(
            self,
            token=token,
            logprob=_logprob(view, token, after),
            finish=finish_code(view.table, token, view.request[after], generated),
            request=view.request[after],
            generated=generated,
        )


def _logprob(view: View, token: jax.Array, after: jax.Array) -> jax.Array:
    """Return [B] float32: log-probability of tokens that follow rows of the view."""
    sampled = view.token[after]
    # The sampled token's logit and log-probability tell the sum over the vocabulary.
    normaliser = view.logits[after, sampled] - view.logprob[after]
    safe = jnp.clip(token, 0, view.logits.shape[1] - 1)
    logprob = view.logits[after, safe] - normaliser
    return jnp.where(token == sampled, view.logprob[after], logprob)


class Planner(Protocol):
    """The part of a strategy that runs on the device.

    It must be hashable: it is static in the decode loop, and strategies with equal
    planners share a compilation.

    `plan` must be a function of its arguments. If a plan does not fit the free pages
    and nodes, neither the forest nor the planner's state changes, and the engine relies
    on getting the same plan again: it may start steps before it has looked at the last.

    A loop within `plan` must compute its condition. On a GPU the decode loop is one
    CUDA graph, and a `while_loop` that only carries a flag has gone wrong there (JAX
    0.11.2): write `lambda x: x.step < x.limit`, not `lambda x: x.goes_on`.
    `check_planner` finds such loops, and `checked` plans that make no sense.

    What else a planner may have, values that nodes carry among it, is said in
    `deft_jax.strategies.traits`.

    Attributes:
        draft_depth: levels of rows that continue rows of the same plan, 1 for none.
    """

    @property
    def draft_depth(self) -> int:
        """Levels of rows that continue rows of the same plan."""
        ...

    def init(self, capacity: Capacity) -> Any:
        """Return the planner's own state before the first step, a pytree of arrays."""
        ...

    def plan(self, state: Any, view: View) -> tuple[Any, Plan]:
        """Return the next state and the plan; traced, must not touch the host.

        Args:
            state: the planner's own state.
            view: what the planner sees.
        """
        ...


class Strategy(Protocol):
    """A way to grow trees.

    A strategy may also have the methods `pages` and `evaluate`; see
    `deft_jax.strategies.traits`.

    Attributes:
        rows: query rows that one request needs in a step.
        nodes: nodes that one request may hold at once, its root counted.
        planner: what decides on the device; may be the strategy itself.
    """

    @property
    def rows(self) -> int:
        """Query rows that one request needs in a step."""
        ...

    @property
    def nodes(self) -> int:
        """Nodes that one request may hold at once."""
        ...

    @property
    def planner(self) -> Planner:
        """What decides on the device."""
        ...

    def conclude(self, tree: Any) -> Any:
        """Return the finished `GenerationTree` of a request, with what is added."""
        ...
