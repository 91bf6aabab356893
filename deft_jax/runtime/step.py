"""The decode loop: sample, plan, append, group, run the layers, all on the device."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.grouping import Grouping
from deft_jax.runtime.apply_plan import apply_plan
from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.runtime.forward import Model, forward
from deft_jax.runtime.path_tokens import count_generated, count_tokens
from deft_jax.runtime.plan_limits import within_limits
from deft_jax.runtime.prefill import any_of_request
from deft_jax.runtime.state import DecodeState, Rows, StepLog
from deft_jax.runtime.top_log import TopLog
from deft_jax.sampling.draw import is_greedy, sample, sample_greedily, top_logprobs
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Plan, Planner, View, finish_code
from deft_jax.tree.appending import Slots
from deft_jax.tree.pruning import prune
from deft_jax.tree.state import NO_NODE, choose, replace


def decode(
    model: Model,
    state: DecodeState,
    table: RequestTable,
    dropped: jax.Array,
    max_steps: jax.Array,
    *,
    planner: Planner,
    method: AttentionMethod,
) -> DecodeState:
    """Decode up to `max_steps` steps without the host.

    The loop stops before that when a request ends (so that the host can fill its rows),
    or when a plan does not fit the free pages or nodes: then the state is as before
    that plan but for `tree.overflow`.

    Args:
        model: the network.
        state: donated by the caller's jit; its log is overwritten.
        table: sampling, limits and ends of the requests.
        dropped: [N] bool, nodes that the host drops before the first step, with all
            below them.
        max_steps: [] int32, at most the log's capacity.
        planner: static; the part of the strategy that runs on the device.
        method: static; stores KV and attends.
    """
    state = dataclasses.replace(
        state, tree=replace(state.tree, overflow=jnp.int32(0)), step=jnp.int32(0)
    )
    state = lax.cond(jnp.any(dropped), lambda s: _drop(s, dropped), lambda s: s, state)
    size = state.tree.num_nodes
    num_requests = jnp.sum(state.roots < size)

    def goes_on(state):
        same = jnp.sum(state.roots < size) == num_requests
        fits = state.tree.overflow == 0
        return (num_requests > 0) & same & fits & (state.step < max_steps)

    def step(state):
        return decode_step(model, state, table, planner, method)

    return lax.while_loop(goes_on, step, state)


def _drop(state: DecodeState, dropped: jax.Array) -> DecodeState:
    """Drop nodes, the rows there and below, and requests left without a node."""
    size, num_requests = state.tree.num_nodes, state.roots.shape[0]
    tree = prune(state.tree, dropped, state.keep)
    live = jnp.append(tree.live, False)
    kept, rows = live[state.rows.node], state.rows
    rows = dataclasses.replace(
        rows,
        node=jnp.where(kept, rows.node, size),
        request=jnp.where(kept, rows.request, num_requests),
    )
    roots = jnp.where(live[state.roots], state.roots, size)
    return dataclasses.replace(state, tree=tree, rows=rows, roots=roots)


def decode_step(model, state, table, planner, method) -> DecodeState:
    """Run one step of `decode`: every row gets a token, and its hidden state."""
    view = _look(model, state, table)
    with jax.named_scope("tree_operations"):
        planner_state, plan = planner.plan(state.planner, view)
        plan, left_out = within_limits(plan, view, planner.draft_depth)
        plan, not_finite = _end_not_finite(state, view, plan)
        tree, slots, roots, keys = apply_plan(state, plan, planner.draft_depth)
        fits = tree.overflow == 0
    hidden, pool, grouping = forward(
        model, tree, state.pool, slots, plan.token, method, state.rows.node
    )
    rows = Rows(
        node=slots.node,
        request=jnp.where(slots.node < tree.num_nodes, plan.request, roots.shape[0]),
        number=state.rows.number,
        generated=plan.generated,
    )
    return DecodeState(
        tree=tree,
        pool=pool,
        rows=choose(fits, rows, state.rows),
        hidden=jnp.where(fits, hidden, state.hidden),
        roots=jnp.where(fits, roots, state.roots),
        not_finite=not_finite,
        branch_keys=keys,
        keep=jnp.where(fits, plan.keep, state.keep),
        planner=choose(fits, planner_state, state.planner),
        log=_write_log(state, plan, left_out, slots, grouping),
        top_log=_write_top_log(state, view.logits, table.num_top),
        step=state.step + jnp.where(fits, 1, 0),
    )


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


def _write_log(
    state: DecodeState,
    plan: Plan,
    left_out: jax.Array,
    slots: Slots,
    grouping: Grouping,
) -> jax.Array:
    """Return the log with this step; its counts are int32 and summed by the host."""
    tree_tokens = jnp.sum(grouping.slot_first < grouping.slot_end, dtype=jnp.int32)
    live = slots.page < grouping.page_first.shape[0]
    row = StepLog(
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
    )
    return state.log.at[state.step].set(row.pack())


def _write_top_log(state: DecodeState, logits: jax.Array, num_top: int):
    """Return the log of the most likely tokens with this step; as it is if unwanted."""
    if num_top == 0:
        return state.top_log
    token, logprob = top_logprobs(logits, num_top)
    step = TopLog(node=state.rows.node, token=token, logprob=logprob)
    return state.top_log.at[state.step].set(step.pack())
