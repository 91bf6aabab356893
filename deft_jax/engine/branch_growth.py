"""The operation that generates: branches grow, or get the leaves of a strategy."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from deft_jax.engine.branch_path import BranchPath
from deft_jax.engine.branch_reading import release
from deft_jax.engine.branch_state import BranchState, growing
from deft_jax.engine.branch_text import encode_behind, length_before_stop
from deft_jax.engine.operation import Operation
from deft_jax.engine.pins import SharedPin
from deft_jax.engine.session_state import Answer, SessionState
from deft_jax.errors import DeftError
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import FinishReason, TreeNode
from deft_jax.sampling.noise import child_key_on_host
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy


@dataclasses.dataclass
class Growth:
    """What was generated on one way from a branch down to a leaf.

    Attributes:
        path: the path down to where the text ends.
        left_over: tokens of text behind that which was generated within a token.
        finish_reason: why the text ended.
        notice: one line about what ended it early; None if nothing did.
        pin: keeps the KV of the path; whoever made the growth has a share of it.
    """

    path: BranchPath
    left_over: list[int]
    finish_reason: FinishReason | None
    notice: str | None
    pin: SharedPin


def generating(states: Sequence[BranchState], sampling: Sampling) -> Operation[None]:
    """Generate one text behind each branch; all branches grow or none.

    Raises:
        DeftError: a branch cannot be used, or a request was refused or failed.
    """
    if not states:
        return
    with growing(states) as handles:
        session = states[0].session
        keys = [state.next_key() for state in states]
        requests = _submissions(states, keys, None, sampling)
        answers = yield from session.ask(requests, handles)
        try:
            growths = [
                _growths(state, state.path, answer, sampling)[0]
                for state, answer in zip(states, answers, strict=True)
            ]
            extra = yield from _read_left_over(session, growths, handles)
            answers += extra
            for state, growth in zip(states, growths, strict=True):
                state.check_still_there()
                state.move(growth.path, growth.pin, growth.finish_reason, growth.notice)
        finally:
            release(answers)


def branching(
    states: Sequence[BranchState], strategy: Strategy, sampling: Sampling
) -> Operation[list[BranchState]]:
    """Grow a tree behind each branch, and return a branch at the end of each leaf.

    Leaves that the strategy gave up are left out. The branches stay where they are.

    Raises:
        DeftError: a branch cannot be used, or a request was refused or failed.
    """
    for state in states:
        state.check_usable()
    if not states:
        return []
    session = states[0].session
    keys = [state.next_key() for state in states]
    # The leaves' own keys, apart from those by which the strategy's nodes drew.
    leaf_keys = [state.next_key() for state in states]
    requests = _submissions(states, keys, strategy, sampling)
    answers = yield from session.ask(requests, [])
    try:
        found = [
            (child_key_on_host(key, number), growth)
            for state, key, answer in zip(states, leaf_keys, answers, strict=True)
            for number, growth in enumerate(
                _growths(state, state.path.forked(), answer, sampling)
            )
        ]
        growths = [growth for _, growth in found]
        extra = yield from _read_left_over(session, growths, [])
        answers += extra
        return [_leaf_state(session, key, growth) for key, growth in found]
    finally:
        release(answers)


def _submissions(
    states: Sequence[BranchState],
    keys: Sequence[int],
    strategy: Strategy | None,
    sampling: Sampling,
):
    """Return a function for each branch that begins its request."""
    session = states[0].session
    return [
        functools.partial(
            session.engine.submit,
            list(state.path.all_tokens),
            strategy,
            sampling,
            key=key,
            priority=session.priority,
            pin=True,
        )
        for state, key in zip(states, keys, strict=True)
    ]


def _growths(
    state: BranchState, path: BranchPath, answer: Answer, sampling: Sampling
) -> list[Growth]:
    """Return what was generated behind a path, a growth for each leaf of the tree."""
    tree: GenerationTree = answer.value
    leaves = [leaf for leaf in tree.leaves() if leaf.finish_reason != "pruned"]
    return [
        _growth(state.session, path, tree, leaf, answer.pin, sampling)
        for leaf in leaves or tree.leaves()
    ]


def _growth(
    session: SessionState,
    path: BranchPath,
    tree: GenerationTree,
    leaf: TreeNode,
    pin: SharedPin,
    sampling: Sampling,
) -> Growth:
    """Return what was generated down to a leaf, without what ended it."""
    nodes = tree.path(leaf)[1:]
    tokens = [token for node in nodes for token in node.tokens]
    logprobs = [logprob for node in nodes for logprob in node.logprobs]
    count, text = len(tokens), ""
    engine = session.engine
    if leaf.finish_reason == "stop":
        count, text = length_before_stop(
            tokens,
            tree.path_text(leaf),
            path.stream,
            sampling.stop,
            engine.tokenizer,
            ignore_eos=sampling.ignore_eos,
        )
    path = path.grown(tokens[:count], logprobs[:count])
    vocab_size = engine.model.config.vocab_size
    left_over = (
        encode_behind(engine.tokenizer, text, path.stream, vocab_size) if text else []
    )
    return Growth(path, left_over, leaf.finish_reason, tree.notice, pin)


def _read_left_over(
    session: SessionState, growths: Sequence[Growth], handles
) -> Operation[list[Answer]]:
    """Put the text that is left over behind the growths that have any.

    Returns:
        What was read, with pins that the growths have now.
    """
    cut = [growth for growth in growths if growth.left_over]
    requests = [
        functools.partial(
            session.engine.read,
            [*growth.path.all_tokens, *growth.left_over],
            score_from=len(growth.path.all_tokens),
            priority=session.priority,
            pin=True,
        )
        for growth in cut
    ]
    answers = yield from session.ask(requests, handles)
    for growth, answer in zip(cut, answers, strict=True):
        growth.path = growth.path.grown(growth.left_over, answer.value.logprobs)
        growth.pin = answer.pin
    return answers


def _leaf_state(session: SessionState, key: int, growth: Growth) -> BranchState:
    """Return a branch at the end of a growth, all of which is its own."""
    state = BranchState(session, growth.path, key, growth.pin)
    state.finish_reason, state.notice = growth.finish_reason, growth.notice
    return state


def chosen_sampling(
    session: SessionState,
    sampling: Sampling | None,
    stop: str | Sequence[str] | None,
    max_new_tokens: int | None,
) -> Sampling:
    """Return the sampling of an operation.

    Args:
        session: has the sampling of operations that name none.
        sampling: how tokens are chosen.
        stop: strings that end a text, in place of those of the sampling.
        max_new_tokens: tokens to generate, in place of the number of the sampling.

    Raises:
        DeftError: a value cannot be used.
    """
    sampling = session.sampling if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise DeftError(f"sampling must be a deft_jax.Sampling, got {sampling!r:.60}")
    changes: dict[str, Any] = {"stop": stop, "max_new_tokens": max_new_tokens}
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(sampling, **changes)
