"""Tokens of text that goes on a path, and where a text ends before its stop string."""

from collections.abc import Sequence
from typing import Any

from deft_jax.engine.host_tree import Tokenizer
from deft_jax.engine.prompts import list_prompts
from deft_jax.engine.stop_strings import StopMatcher
from deft_jax.errors import DeftError

_ANCHOR = "\n"
"""What stands before a text so that a tokenizer puts no space there."""


def encode_behind(
    tokenizer: Tokenizer, text: Any, stream: Any, vocab_size: int
) -> list[int]:
    """Return the token ids of something that goes on a path.

    A text is encoded on its own, without BOS and without the space that SentencePiece
    puts before a text. Token ids stay as they are.

    Args:
        tokenizer: turns text into token ids.
        text: text or token ids, neither of them empty.
        stream: turns the tokens behind the path into text; it is not changed.
        vocab_size: token ids lie below it.

    Raises:
        DeftError: it is neither text nor token ids, or has no tokens.
    """
    if not isinstance(text, str):
        ids = _given_ids(text)
    else:
        ids = _without_start(tokenizer, text)
        if _text_of(stream, ids) == " " + text:
            anchor = _without_start(tokenizer, _ANCHOR)
            anchored = _without_start(tokenizer, _ANCHOR + text)
            if anchored[: len(anchor)] == anchor:
                ids = anchored[len(anchor) :]
    if not ids:
        raise DeftError(f"expected text or ids of at least 1 token, got {text!r:.60}")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise DeftError(
            f"expected token ids from 0 to {vocab_size - 1}, got ids from {min(ids)} "
            f"to {max(ids)}"
        )
    return ids


def length_before_stop(
    tokens: Sequence[int],
    text: str,
    stream: Any,
    stops: tuple[str, ...],
    tokenizer: Tokenizer,
    *,
    ignore_eos: bool,
) -> tuple[int, str]:
    """Return how many tokens lie before what ended a branch, and the text behind them.

    A stop string may begin within a token. Then the token is left out, and its text
    before the stop string is what is left over:

        tokens "so", " it.", "END"; stop ".END"  ->  1 token, and " it" is left over

    Args:
        tokens: what was generated, up to the token that ended it.
        text: its text up to the stop string.
        stream: turns these tokens into text; it is not changed.
        stops: strings that end a branch.
        tokenizer: knows the end-of-text tokens and the special ones.
        ignore_eos: true if no end-of-text token ends a branch.
    """
    streams, ends = [stream], [0]
    for token in tokens:
        streams.append(streams[-1].copy())
        ends.append(ends[-1] + len(streams[-1].push(token)))
    is_eos = bool(tokens) and tokens[-1] in tokenizer.eos_token_ids
    if is_eos and not ignore_eos and ends[-1] <= len(text):
        return len(tokens) - 1, ""
    special = getattr(tokenizer, "special_tokens", None)
    for count in reversed(range(len(tokens))):
        # Within a character there is no place to end.
        is_whole = not streams[count].copy().flush()
        if ends[count] > len(text) or not is_whole:
            continue
        if _holds_stop(tokens[count:], streams[count], StopMatcher(stops, special)):
            return count, text[ends[count] :]
    return len(tokens), ""


def _holds_stop(tokens: Sequence[int], stream: Any, matcher: StopMatcher) -> bool:
    """Say whether there is a whole stop string in the text of tokens."""
    stream = stream.copy()
    for token in tokens:
        matcher.push(stream.push(token), token)
    matcher.push(stream.flush())
    return matcher.stop_at is not None


def _given_ids(ids: Any) -> list[int]:
    """Return token ids as plain integers.

    Raises:
        DeftError: they are none.
    """
    items = list_prompts(ids) if not hasattr(ids, "__len__") or len(ids) else [[]]
    if len(items) != 1 or isinstance(items[0], str):
        raise DeftError(f"expected text or token ids, got {ids!r:.60}")
    return items[0]


def _without_start(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text without the BOS that an empty text has too."""
    start, ids = list(tokenizer.encode("")), list(tokenizer.encode(text))
    return ids[len(start) :] if ids[: len(start)] == start else ids


def _text_of(stream: Any, ids: Sequence[int]) -> str:
    stream = stream.copy()
    return "".join([*map(stream.push, ids), stream.flush()])
