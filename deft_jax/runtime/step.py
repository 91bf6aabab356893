"""The decode loop: sample, plan, append, group, run the layers, all on the device."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.grouping import Grouping
from deft_jax.runtime.apply_plan import apply_plan
from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.runtime.chains import merge_chains
from deft_jax.runtime.forward import Model, forward
from deft_jax.runtime.node_carry import grown
from deft_jax.runtime.parking import clear_strangers, keep_parked
from deft_jax.runtime.path_tokens import count_generated, count_tokens
from deft_jax.runtime.plan_limits import within_limits
from deft_jax.runtime.prefill import any_of_request
from deft_jax.runtime.state import (
    LOG_STEPS,
    DecodeState,
    Report,
    Rows,
    StepLog,
    Turn,
    pack_numbers,
)
from deft_jax.runtime.top_log import TopLog
from deft_jax.sampling.draw import is_greedy, sample, sample_greedily, top_logprobs
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Plan, Planner, View, finish_code
from deft_jax.strategies.traits import may_wait, merges_chains, shares_pages
from deft_jax.tree.appending import Slots
from deft_jax.tree.ownership import is_below, only_below
from deft_jax.tree.state import NO_NODE, choose


def decode(
    model: Model,
    state: DecodeState,
    table: RequestTable,
    turn: Turn,
    *,
    planner: Planner,
    method: AttentionMethod,
    width: int | None = None,
) -> tuple[DecodeState, Report]:
    """Decode up to `turn.max_steps` steps without the host.

    The loop stops before that when a request ends (so that the host can fill its rows)
    or waits for the host, or when a plan does not fit the free pages or nodes: then the
    state is as before that plan but for `tree.overflow`.

    Args:
        model: the network.
        state: donated by the caller's jit.
        table: sampling, limits and ends of the requests.
        turn: which requests decode, and how far.
        planner: static; the part of the strategy that runs on the device.
        method: static; stores KV and attends.
        width: static, `W`; the rows of the requests that decode are among so many
            first ones, and a step costs what these cost. All rows if None.

    Returns:
        The state, and the report with the log.
    """
    size, num_rows = state.tree.num_nodes, width or state.rows.node.shape[0]
    inner, others_keep = _take_turn(state, turn, num_rows)
    planner_state = clear_strangers(planner, state, turn)
    if may_wait(planner):
        says_nothing = jnp.isnan(turn.scores)
        score = jnp.where(says_nothing, planner_state.score, turn.scores)
        planner_state = planner_state._replace(score=score)
    inner = dataclasses.replace(inner, planner=planner_state)
    roots_before = inner.roots
    num_requests = jnp.sum(roots_before < size)

    def goes_on(carry):
        state, _, waiting, step = carry
        same = jnp.sum(state.roots < size) == num_requests
        fits = state.tree.overflow == 0
        goes_on = (num_requests > 0) & same & fits & (step < turn.max_steps)
        return goes_on if waiting is None else goes_on & ~jnp.any(waiting)

    def run(carry):
        state, logs, _, step = carry
        state, entries, waiting = decode_step(
            model, state, table, turn.rests, planner, method
        )
        state = dataclasses.replace(state, keep=state.keep | others_keep)
        fits = state.tree.overflow == 0
        logs = jax.tree.map(lambda log, entry: log.at[step].set(entry), logs, entries)
        return state, logs, waiting, step + jnp.where(fits, 1, 0)

    log = StepLog.create(LOG_STEPS, num_rows)
    logs = log, TopLog.create(LOG_STEPS, num_rows, table.num_top)
    waiting = jnp.zeros_like(turn.requests) if may_wait(planner) else None
    inner, logs, waiting, steps = lax.while_loop(
        goes_on, run, (inner, logs, waiting, jnp.int32(0))
    )
    planner_state = keep_parked(planner, state, inner.planner, turn)
    state = _hand_over(state, inner, turn)
    state = dataclasses.replace(state, planner=planner_state)
    numbers = pack_numbers(
        state,
        steps=steps,
        roots_before=roots_before,
        waiting=waiting,
        row_node=inner.rows.node,
    )
    return state, Report(numbers, *logs)


def _take_turn(
    state: DecodeState, turn: Turn, num_rows: int
) -> tuple[DecodeState, jax.Array]:
    """Return the state as the requests in turn see it, and what others keep.

    Rows and roots of the other requests are idle there, so that no planner sees them
    and none of them is taken for ended.

    Returns:
        The state with `num_rows` rows, and [N] bool, nodes that other requests keep.
    """
    size, num_requests = state.tree.num_nodes, state.roots.shape[0]
    rows = jax.tree.map(lambda x: x[:num_rows], state.rows)
    is_in = jnp.append(turn.requests, False)[rows.request]
    rows = dataclasses.replace(
        rows,
        node=jnp.where(is_in, rows.node, size),
        request=jnp.where(is_in, rows.request, num_requests),
    )
    roots = jnp.where(turn.requests, state.roots, size)
    others_keep = state.keep & state.tree.live & ~is_below(state.tree, roots)
    return dataclasses.replace(
        state, rows=rows, hidden=state.hidden[:num_rows], roots=roots
    ), others_keep


def _hand_over(before: DecodeState, after: DecodeState, turn: Turn) -> DecodeState:
    """Return the state after a burst, in which other requests are as they were."""
    num_rows = after.rows.node.shape[0]
    # A row that was idle may have become a branch.
    stays = jnp.append(~turn.requests, False)[before.rows.request[:num_rows]]

    def put(old, new):
        mask = stays[:, None] if old.ndim == 2 else stays
        return old.at[:num_rows].set(jnp.where(mask, old[:num_rows], new))

    return dataclasses.replace(
        after,
        rows=jax.tree.map(put, before.rows, after.rows),
        hidden=put(before.hidden, after.hidden),
        roots=jnp.where(turn.requests, after.roots, before.roots),
    )


def decode_step(
    model, state, table, rests, planner, method
) -> tuple[DecodeState, tuple, jax.Array | None]:
    """Run one step of `decode`: every row gets a token, and its hidden state.

    Returns:
        The state, the step's entries of both logs, () for one that is not kept, and [R]
        bool, the requests that wait for the host; None for a planner that never waits.
    """
    if merges_chains(planner):
        state = merge_chains(state)
    view = _look(model, state, table)
    with jax.named_scope("tree_operations"):
        # Planners see nothing of what rests, nor of requests that are not in turn.
        own = dataclasses.replace(view, tree=only_below(state.tree, state.roots))
        own = state.planner.seen(planner, own)
        planner_own, plan = planner.plan(state.planner.own, own)
        plan, left_out = within_limits(plan, view, planner.draft_depth)
        plan, not_finite = _end_not_finite(state, view, plan)
        state, slots, roots = apply_plan(
            state,
            plan,
            planner.draft_depth,
            rests & ~not_finite,
            shares_pages(planner),
        )
        fits = state.tree.overflow == 0
        planner_state = grown(
            own, plan, view.tree, slots.node, planner_own, planner.draft_depth
        )
        tree = state.tree
    hidden, pool, grouping = forward(
        model, tree, state.pool, slots, plan.token, method, state.rows.node
    )
    rows = Rows(
        node=slots.node,
        request=jnp.where(slots.node < tree.num_nodes, plan.request, roots.shape[0]),
        number=state.rows.number,
        generated=plan.generated,
    )
    after = dataclasses.replace(
        state,
        pool=pool,
        rows=choose(fits, rows, state.rows),
        hidden=jnp.where(fits, hidden, state.hidden),
        roots=jnp.where(fits, roots, state.roots),
        not_finite=not_finite,
        keep=jnp.where(fits, plan.keep, state.keep),
        planner=choose(fits, planner_state, state.planner),
    )
    tops = _pack_tops(state, view.logits, table.num_top)
    entries = _pack_log(plan, left_out, slots, grouping), tops
    return after, entries, _waiting(planner, plan, after, fits)


def _waiting(
    planner: Planner, plan: Plan, after: DecodeState, fits: jax.Array
) -> jax.Array | None:
    """Return [R] bool, requests that wait for the host; None if none ever does."""
    if not may_wait(planner):
        return None
    runs = fits & (after.roots < after.tree.num_nodes)
    return runs & (False if plan.wait is None else plan.wait)


def _end_not_finite(
    state: DecodeState, view: View, plan: Plan
) -> tuple[Plan, jax.Array]:
    """Let the requests end of which a row's logits are not finite.

    Sampling marks such a row by a log-probability of NaN. No row of its request goes
    on or takes a token, so that the plan ends the request; no other one is touched.

    Returns:
        The plan, and [R] bool, the requests that were not finite so far.
    """
    num_requests = state.roots.shape[0]
    broken = jnp.isnan(view.logprob) & (view.node < view.tree.num_nodes)
    not_finite = state.not_finite | any_of_request(broken, view.request, num_requests)
    ends = jnp.append(not_finite, False)[jnp.minimum(plan.request, num_requests)]
    return dataclasses.replace(
        plan,
        accept=jnp.where(ends, NO_NODE, plan.accept),
        source=jnp.where(ends, NO_NODE, plan.source),
    ), not_finite


def _look(model, state: DecodeState, table: RequestTable) -> View:
    """Sample every row and say which would finish with that token."""
    rows = state.rows
    with jax.named_scope("layers"):
        logits = model.logits(state.hidden)
    request = jnp.minimum(rows.request, table.max_new_tokens.shape[0] - 1)
    vocab_size = logits.shape[1]
    with jax.named_scope("sampling"):
        # The logits stay inside the condition, whose results are copied.
        sampled = lax.cond(
            is_greedy(table.sampling, vocab_size),
            lambda: sample_greedily(logits),
            lambda: sample(
                logits,
                table.sampling.take(request),
                state.branch_keys.of_rows(rows.node, rows.number, rows.generated),
                rows.generated,
                lambda: count_tokens(state.tree, rows, vocab_size) > 0,
                lambda: count_generated(state.tree, rows, vocab_size),
            ),
        )
    return View(
        tree=state.tree,
        table=table,
        node=rows.node,
        request=rows.request,
        number=rows.number,
        generated=rows.generated,
        logits=logits,
        token=sampled.token,
        logprob=sampled.logprob,
        finish=finish_code(table, sampled.token, request, rows.generated + 1),
        roots=state.roots,
    )


def _pack_log(
    plan: Plan, left_out: jax.Array, slots: Slots, grouping: Grouping
) -> jax.Array:
    """Return a step's entry of the log; its counts are int32, summed by the host."""
    tree_tokens = jnp.sum(grouping.slot_first < grouping.slot_end, dtype=jnp.int32)
    live = slots.page < grouping.page_first.shape[0]
    return StepLog(
        accept=plan.accept,
        draft_logprob=plan.draft_logprob,
        source=plan.source,
        left_out=left_out,
        branch=plan.branch,
        draft=plan.draft,
        node=slots.node,
        token=plan.token,
        logprob=plan.logprob,
        finish=plan.finish,
        request=plan.request,
        tree_tokens=jnp.broadcast_to(tree_tokens, slots.node.shape),
        path_tokens=jnp.where(live, slots.position + 1, 0),
    ).pack()


def _pack_tops(state: DecodeState, logits: jax.Array, num_top: int):
    """Return a step's entry of the log of the most likely tokens; () if unwanted."""
    if num_top == 0:
        return ()
    token, logprob = top_logprobs(logits, num_top)
    return TopLog(node=state.rows.node, token=token, logprob=logprob).pack()
