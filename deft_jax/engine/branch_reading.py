"""Operations that read: prompts, texts that are given, and texts that are scored."""

import functools
from collections.abc import Sequence
from typing import Any

from deft_jax.engine.branch_path import BranchPath
from deft_jax.engine.branch_state import BranchState, growing
from deft_jax.engine.branch_text import encode_behind
from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.operation import Operation
from deft_jax.engine.prompts import check_token_ids
from deft_jax.engine.reading import Reading
from deft_jax.engine.session_state import Answer, SessionState
from deft_jax.sampling.noise import ROOT_KEY


def opening(
    session: SessionState, prompts: Sequence[str | list[int]]
) -> Operation[list[BranchState]]:
    """Read prompts, and return a branch at the end of each.

    All have the same key, as the roots of requests have, so that what is opened first
    makes no difference.

    Raises:
        DeftError: a prompt cannot be read.
    """
    tokenizer = session.engine.tokenizer
    paths = [
        BranchPath.of_prompt(tokenizer, each, ids)
        for each, ids in zip(prompts, _prompt_ids(session, prompts), strict=True)
    ]
    requests = [_reader(session, path.all_tokens, pin=True) for path in paths]
    answers = yield from session.ask(requests, [])
    try:
        return [
            BranchState(session, path, ROOT_KEY, answer.pin)
            for path, answer in zip(paths, answers, strict=True)
        ]
    finally:
        release(answers)


def extending(states: Sequence[BranchState], texts: Sequence[Any]) -> Operation[None]:
    """Put texts behind branches, one each, with their log-probabilities.

    Args:
        states: the branches, which all grow or none.
        texts: text or token ids for each.

    Raises:
        DeftError: a branch cannot be used, or a text cannot be read.
    """
    with growing(states) as handles:
        added = [_encode(s, text) for s, text in zip(states, texts, strict=True)]
        requests = [
            _scorer(state, ids, pin=True)
            for state, ids in zip(states, added, strict=True)
        ]
        answers = yield from _ask(states, requests, handles)
        try:
            for state, ids, answer in zip(states, added, answers, strict=True):
                state.check_still_there()
                state.move(state.path.grown(ids, answer.value.logprobs), answer.pin)
        finally:
            release(answers)


def scoring(
    states: Sequence[BranchState], texts: Sequence[Any]
) -> Operation[list[list[tuple[float, ...]]]]:
    """Return the log-probabilities that branches give the tokens of texts.

    Args:
        states: the branches, which stay as they are.
        texts: text or token ids, each put behind each branch.

    Returns:
        For each branch, for each text, the log-probability of each of its tokens.

    Raises:
        DeftError: a branch cannot be used, or a text cannot be read.
    """
    for state in states:
        state.check_usable()
    requests = [
        _scorer(state, _encode(state, text), pin=False)
        for state in states
        for text in texts
    ]
    answers = yield from _ask(states, requests, [])
    scores = [tuple(answer.value.logprobs) for answer in answers]
    width = len(texts)
    return [scores[i * width : (i + 1) * width] for i in range(len(states))]


def looking(
    states: Sequence[BranchState], top: int
) -> Operation[list[tuple[tuple[int, float], ...]]]:
    """Return the most likely next tokens of branches, best first.

    Args:
        states: the branches, which stay as they are.
        top: how many tokens.

    Raises:
        DeftError: a branch cannot be used.
    """
    for state in states:
        state.check_usable()
    requests = [
        _reader(state.session, state.path.all_tokens, top=top) for state in states
    ]
    answers = yield from _ask(states, requests, [])
    return [tuple(answer.value.top) for answer in answers]


def reading_texts(
    session: SessionState, prompts: Sequence[str | list[int]]
) -> Operation[list[tuple[float, ...]]]:
    """Return the log-probabilities of the tokens of prompts, but their first ones.

    Raises:
        DeftError: a prompt cannot be read.
    """
    ids = _prompt_ids(session, prompts)
    requests = [_reader(session, each, score_from=1) for each in ids]
    answers = yield from session.ask(requests, [])
    return [tuple(answer.value.logprobs) for answer in answers]


def release(answers: Sequence[Answer]) -> None:
    """Release the shares that came with answers."""
    for answer in answers:
        answer.pin.release()


def _prompt_ids(
    session: SessionState, prompts: Sequence[str | list[int]]
) -> list[list[int]]:
    """Return the token ids of prompts.

    Raises:
        DeftError: one is empty, too long for the context, or not in the vocabulary.
    """
    config = session.engine.model.config
    encode = session.engine.tokenizer.encode
    ids = [encode(each) if isinstance(each, str) else each for each in prompts]
    for index, each in enumerate(ids):
        check_token_ids(index, each, config.vocab_size, config.context_length)
    return ids


def _ask(states, requests, handles) -> Operation[list[Answer]]:
    """Ask the session of branches; nothing if there are no branches."""
    if not requests:
        return []
    return (yield from states[0].session.ask(requests, handles))


def _encode(state: BranchState, text: Any) -> list[int]:
    engine = state.session.engine
    vocab_size = engine.model.config.vocab_size
    return encode_behind(engine.tokenizer, text, state.path.stream, vocab_size)


def _scorer(state: BranchState, ids: Sequence[int], *, pin: bool):
    """Return a function that begins to read tokens behind a branch and scores them."""
    path = state.path.all_tokens
    return _reader(state.session, (*path, *ids), score_from=len(path), pin=pin)


def _reader(session: SessionState, ids: Sequence[int], **options):
    """Return a function that begins to read tokens."""
    read = session.engine.read
    begin: functools.partial[RequestHandle[Reading]] = functools.partial(
        read, list(ids), priority=session.priority, **options
    )
    return begin
