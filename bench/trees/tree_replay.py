"""Replays a tree template on the engine: topology given, tokens from the model."""

import dataclasses
import heapq
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deft_jax.capacity import DEFAULT_PAGE_SIZE, Capacity, bucket
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.vocab_search import top_k
from deft_jax.strategies.protocol import RUNNING, Plan, View
from deft_jax.tree.state import NO_NODE

from .replay_capacity import check_one_request, replay_capacity
from .templates import TreeTemplate

IDLE = -1
"""Source of a row that is idle after an event."""

IN_PLACE = -1
"""Rank of a row that goes on in place."""

MIN_EVENTS = 128
"""Fewest entries of the event table, so that most trees share a compilation."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayState:
    """The steps in which something branches or ends, and how far the replay is.

    Attributes:
        when: [E] int32, step of each event, in order; NO_NODE for unused entries.
        source: [E, B] int32, row of the last step that each row continues, or IDLE.
        rank: [E, B] int32, which of the likeliest tokens after its source a new child
            takes, from 0, or IN_PLACE.
        ends: [E, B] bool, true for rows of the last step whose leaf is pruned.
        next: [] int32, the next event.
        step: [] int32, the next step.
    """

    when: jax.Array
    source: jax.Array
    rank: jax.Array
    ends: jax.Array
    next: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class TreePlanner:
    """Runs a template's schedule, which is in the state: templates share compilations.

    Attributes:
        events: `E`, entries of the event table.
        template: the tree; read by `init` alone.
        draft_depth: 1, as nothing is drafted.
    """

    events: int
    template: TreeTemplate = dataclasses.field(compare=False, repr=False)
    draft_depth: int = 1

    def init(self, capacity: Capacity) -> ReplayState:
        """Return the schedule as arrays.

        Raises:
            CapacityError: the engine decodes several requests at a time.
        """
        check_one_request(capacity)
        return _schedule(self.template, self.events, capacity.rows)

    def plan(self, state: ReplayState, view: View) -> tuple[ReplayState, Plan]:
        """Follow the schedule; the step of a request's fresh rows is the first."""
        size, num_rows = view.tree.num_nodes, view.node.shape[0]
        live = view.node < size
        fresh = live[0] & (view.generated[0] == 0)
        step, event = (jnp.where(fresh, 0, x) for x in (state.step, state.next))
        due = state.when[event] == step
        own = jnp.where(live, jnp.arange(num_rows, dtype=jnp.int32), IDLE)
        source = jnp.where(due, state.source[event], own)
        rank = jnp.where(due, state.rank[event], IN_PLACE)
        row = jnp.maximum(source, 0)
        token, logprob = _choose(view, row, rank)
        ended = jnp.where(due & state.ends[event], view.node, size)
        plan = dataclasses.replace(
            Plan.continue_all(view),
            prune=jnp.zeros(size, bool).at[ended].set(True, mode="drop"),
            source=jnp.where(source == IDLE, NO_NODE, view.node[row]),
            branch=rank != IN_PLACE,
            token=token,
            logprob=logprob,
            finish=jnp.full(num_rows, RUNNING, jnp.int32),
            request=jnp.zeros(num_rows, jnp.int32),
            generated=view.generated[row] + 1,
        )
        event = event + due.astype(jnp.int32)
        return dataclasses.replace(state, next=event, step=step + 1), plan


def _choose(view: View, row: jax.Array, rank: jax.Array):
    """Return [B] tokens and log-probabilities after rows: sampled, or by rank.

    There are at most as many children as rows, so that no number of likeliest tokens
    depends on the template.
    """
    num_rows, vocab_size = view.logits.shape

    def branch():
        value, token = top_k(view.logits, min(num_rows, vocab_size))
        logprob = value - jax.nn.logsumexp(view.logits, axis=1, keepdims=True)
        goes_on = rank == IN_PLACE
        return (
            jnp.where(goes_on, view.token, token[row, rank]),
            jnp.where(goes_on, view.logprob, logprob[row, rank]),
        )

    return lax.cond(
        jnp.any(rank != IN_PLACE), branch, lambda: (view.token, view.logprob)
    )


@dataclasses.dataclass(frozen=True)
class TreeReplay:
    """The strategy that replays a template, one request at a time.

    The template says when a branch ends: end-of-text tokens and finish codes are not
    looked at. After the last step the engine runs one more without a query
    token, which ends the request.

    Attributes:
        template: the tree; every prompt should have its number of tokens.
    """

    template: TreeTemplate
    ends_branches = True
    """Branches are not ended at the limit of the sampling."""

    @property
    def rows(self) -> int:
        """Most nodes that grow at once."""
        return int(self.template.live_width.max())

    @property
    def nodes(self) -> int:
        """Most nodes that are held at once, the prompt counted."""
        return int(self.template.live_nodes.max())

    @property
    def planner(self) -> TreePlanner:
        """The same for all templates with about as many nodes."""
        events = bucket(max(MIN_EVENTS, len(_event_steps(self.template))))
        return TreePlanner(events, self.template)

    @property
    def sampling(self) -> Sampling:
        """Greedy, and so long that the template ends every branch, not the limit."""
        limit = self.template.steps + 1
        return Sampling(temperature=0.0, max_new_tokens=limit, ignore_eos=True)

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        """Return the tree as it is."""
        return tree

    def result_nodes(self) -> list[int]:
        """Return the template's node that each node of the result stands for."""
        start, row = self.template.start, _assign_rows(self.template)
        nodes = range(1, len(row))
        return [0, *sorted(nodes, key=lambda node: (start[node], row[node]))]

    def pages_needed(self, page_size: int) -> int:
        """Return the most pages held at once: every node has pages of its own."""
        template = self.template
        change = np.zeros(template.steps + 1, int)
        spans = zip(template.start, template.end, template.freed, strict=True)
        for start, end, freed in spans:
            opened = np.arange(start, end, page_size)
            np.add.at(change, np.maximum(opened, 0), 1)
            change[freed] -= len(opened)
        return int(np.cumsum(change).max())


def capacity(template: TreeTemplate, page_size: int = DEFAULT_PAGE_SIZE) -> Capacity:
    """Return the capacity that an engine needs to replay a template."""
    return common_capacity([template], page_size)


def common_capacity(
    templates: Sequence[TreeTemplate], page_size: int = DEFAULT_PAGE_SIZE
) -> Capacity:
    """Return the capacity to replay any of the templates with one compilation."""
    replays = [TreeReplay(template) for template in templates]
    return replay_capacity(
        prompt_tokens=max(template.prompt_tokens for template in templates),
        rows=max(replay.rows for replay in replays),
        nodes=max(replay.nodes for replay in replays),
        pages=max(replay.pages_needed(page_size) for replay in replays),
        page_size=page_size,
    )


def _event_steps(template: TreeTemplate) -> list[int]:
    """Return the step before which each node ends and its children start."""
    return sorted(set(template.end.tolist()))


def _assign_rows(template: TreeTemplate) -> np.ndarray:
    """Return [N] int, each node's row: the lowest that is idle; 0 for the prompt.

    A row is idle again in the step after its node's last.
    """
    start, end = template.start, template.end
    row = np.zeros(len(start), int)
    idle, busy = list(range(len(start))), []
    for node in sorted(range(1, len(start)), key=lambda node: start[node]):
        while busy and busy[0][0] <= start[node]:
            heapq.heappush(idle, heapq.heappop(busy)[1])
        row[node] = heapq.heappop(idle)
        heapq.heappush(busy, (end[node], row[node]))
    return row


def _schedule(template: TreeTemplate, events: int, num_rows: int) -> ReplayState:
    """Return the state before the first step."""
    row, steps = _assign_rows(template), _event_steps(template)
    index = {step: event for event, step in enumerate(steps)}
    when = np.full(events, NO_NODE, np.int32)
    when[: len(steps)] = steps
    source = np.full((events, num_rows), IDLE, np.int32)
    rank = np.full((events, num_rows), IN_PLACE, np.int32)
    ends = np.zeros((events, num_rows), bool)
    inner = set(template.parents)
    children = dict.fromkeys(inner, 0)
    for node, parent in enumerate(template.parents[1:], 1):
        own, first = row[node], index[template.start[node]]
        last = index[template.end[node]]
        source[first:last, own] = own
        source[first, own], rank[first, own] = row[parent], children[parent]
        ends[last, own] = node not in inner
        children[parent] += 1
    arrays = map(jnp.asarray, (when, source, rank, ends))
    return ReplayState(*arrays, next=jnp.int32(0), step=jnp.int32(0))
