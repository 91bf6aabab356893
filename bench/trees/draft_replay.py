"""Replays speculative decoding on the engine with accept lengths from a template."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.capacity import DEFAULT_PAGE_SIZE, Capacity, bucket
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.vocab_search import top_k
from deft_jax.strategies.protocol import RUNNING, Plan, View
from deft_jax.tree.state import NO_NODE

from .draft_templates import DraftTemplate
from .replay_capacity import check_one_request, replay_capacity

IDLE = -1
"""Depth of rows that the draft tree does not use."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DraftState:
    """The draft tree, what is kept of it in each step, and how far the replay is.

    Attributes:
        tip: [S + 1] int32, row whose token is the last one kept when a step begins; 0
            for the first step, whose rows are fresh.
        num_steps: [] int32, steps of the template; the tables may be longer.
        parent: [B] int32, row that each row's token follows; 0 for row 0.
        depth: [B] int32, drafts on the way down to a row's token, or IDLE.
        rank: [B] int32, rank of a row's token among its siblings.
        drafted: [B] int32, tokens of the last step.
        step: [] int32, the next step.
        agreed: [] int32, drafts that greedy verification would have kept so far.
    """

    tip: jax.Array
    num_steps: jax.Array
    parent: jax.Array
    depth: jax.Array
    rank: jax.Array
    drafted: jax.Array
    step: jax.Array
    agreed: jax.Array


@dataclasses.dataclass(frozen=True)
class DraftPlanner:
    """Verifies draft trees, but keeps what the template says.

    The trunk's next token is the model's own after the last kept one. There is no draft
    model: a draft of rank `k` is the token `k + 1` in the order of likelihood at the
    same place, at any depth.

    Attributes:
        draft_depth: levels of query tokens, the trunk's counted.
        steps: entries of the table of tips.
        template: the draft tree; read by `init` alone.
    """

    draft_depth: int
    steps: int
    template: DraftTemplate = dataclasses.field(compare=False, repr=False)

    def init(self, capacity: Capacity) -> DraftState:
        """Return the template as arrays.

        Raises:
            CapacityError: the engine decodes several requests at a time.
        """
        check_one_request(capacity)
        template, rows = self.template, capacity.rows
        return DraftState(
            tip=_table((0, *template.tips), self.steps, 0),
            num_steps=jnp.int32(template.steps),
            parent=_table((0, *template.parents[1:]), rows, 0),
            depth=_table(template.depths, rows, IDLE),
            rank=_table(template.ranks, rows, 0),
            drafted=jnp.zeros(rows, jnp.int32),
            step=jnp.int32(0),
            agreed=jnp.int32(0),
        )

    def plan(self, state: DraftState, view: View) -> tuple[DraftState, Plan]:
        """Judge the drafts of the last step, keep the template's, draft anew."""
        size = view.tree.num_nodes
        fresh = (view.node[0] < size) & (view.generated[0] == 0)
        step = jnp.where(fresh, 0, state.step)
        tip = state.tip[step]
        agreed = state.agreed + self._count_agreed(state, view)
        plan = self._draft(state, view, tip, fresh, step < state.num_steps)
        state = dataclasses.replace(
            state,
            drafted=plan.token,
            step=step + 1,
            agreed=jnp.where(fresh, 0, agreed),
        )
        return state, plan

    def _count_agreed(self, state: DraftState, view: View) -> jax.Array:
        """Return [] int32, drafts on the longest path that the model itself says."""
        says = view.token[state.parent]
        right = (state.depth > 0) & (state.drafted == says)
        kept = state.depth == 0
        for _ in range(1, self.draft_depth):
            kept = kept | (right & kept[state.parent])
        return jnp.max(jnp.where(kept, state.depth, 0))

    def _draft(self, state: DraftState, view: View, tip, fresh, runs) -> Plan:
        """Give the trunk the token after the tip; the drafts follow it."""
        size, num_rows = view.tree.num_nodes, view.node.shape[0]
        most = min(num_rows, view.logits.shape[1])
        _, [likeliest] = top_k(view.logits[tip][None], most)
        trunk, draft = state.depth == 0, state.depth > 0
        keeps = trunk & ~fresh
        source = jnp.where(draft, size + state.parent, view.node[0])
        return dataclasses.replace(
            Plan.continue_all(view),
            accept=jnp.where(keeps, view.node[tip], NO_NODE),
            draft_logprob=_draft_logprob(state, view),
            source=jnp.where(runs & (trunk | draft), source, NO_NODE),
            branch=~keeps,
            draft=draft,
            token=jnp.where(trunk, view.token[tip], likeliest[state.rank]),
            logprob=jnp.where(trunk, view.logprob[tip], 0.0),
            finish=jnp.full(num_rows, RUNNING, jnp.int32),
            request=jnp.zeros(num_rows, jnp.int32),
            generated=view.generated[tip] + 1 + jnp.maximum(state.depth, 0),
        )


def _draft_logprob(state: DraftState, view: View) -> jax.Array:
    """Return [B] float32, each token's log-probability after the row above it."""
    rows = jnp.arange(view.node.shape[0])
    normaliser = view.logits[rows, view.token] - view.logprob
    return view.logits[state.parent, state.drafted] - normaliser[state.parent]


@dataclasses.dataclass(frozen=True)
class DraftReplay:
    """The strategy that replays speculative decoding, one request at a time.

    The template says when the text ends: end-of-text tokens and finish codes are not
    looked at. After the last step the engine runs one more without a query
    token, which accepts the last drafts and ends the request.

    Attributes:
        template: the draft tree; every prompt should have its number of tokens.
    """

    template: DraftTemplate
    ends_branches = True
    """Branches are not ended at the limit of the sampling."""

    @property
    def rows(self) -> int:
        """Query tokens of a step."""
        return self.template.num_tokens

    @property
    def nodes(self) -> int:
        """The prompt, the trunk and the drafts."""
        return 1 + self.template.num_tokens

    @property
    def planner(self) -> DraftPlanner:
        """The same for draft trees of one depth and about as many steps."""
        steps = bucket(self.template.steps + 1)
        return DraftPlanner(self.template.depth + 1, steps, self.template)

    @property
    def sampling(self) -> Sampling:
        """Greedy, and so long that the template ends the text, not the limit."""
        limit = int(self.template.kept[-1]) + 1
        return Sampling(temperature=0.0, max_new_tokens=limit, ignore_eos=True)

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        """Return the tree as it is."""
        return tree

    def pages_needed(self, page_size: int) -> int:
        """Return the most pages held at once: the prompt's and the drafting trunk's."""
        trunk = int(self.template.kept[-2]) + self.template.num_tokens
        return -(-self.template.prompt_tokens // page_size) + -(-trunk // page_size)


def capacity(template: DraftTemplate, page_size: int = DEFAULT_PAGE_SIZE) -> Capacity:
    """Return the capacity that an engine needs to replay a template.

    An engine starts a request only if every row may open a page, though the rows of a
    draft tree share the trunk's.
    """
    replay, prompt = DraftReplay(template), template.prompt_tokens
    to_start = -(-prompt // page_size) + replay.rows
    pages = max(replay.pages_needed(page_size), to_start)
    return replay_capacity(prompt, replay.rows, replay.nodes, pages, page_size)


def _table(values: tuple[int, ...], size: int, fill: int) -> jax.Array:
    """Return [size] int32, the values and, behind them, a fill value."""
    table = np.full(size, fill, np.int32)
    table[: len(values)] = values
    return jnp.asarray(table)
