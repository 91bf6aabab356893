"""Which tokens begin a sequence or end an answer.

A checkpoint declares one end, often that of a text and not that of a turn. So the
tokens whose names are known to end turns do so too, as in llama.cpp.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

END_NAMES = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>"),
    *("<end_of_turn>", "<turn|>", "<end_of_utterance>", "<|end_of_turn|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|endoftext|>", "<|end_of_text|>", "<|EOT|>", "<EOT>"),
    *("_<EOT>", "[EOT]", "[EOS]", "[e~[", "</s>", "<eos>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Control tokens that end an answer in the checkpoints that have them."""

ORDINARY_TEXTS = frozenset({"</s>", "<eos>", "<EOT>", "[EOS]", "[EOT]"})
"""Names of ends that a vocabulary may also hold as a piece of ordinary text."""


def ends_by_name(control_tokens: Mapping[str, int]) -> list[int]:
    """Return the ids of the control tokens that are known to end an answer.

    Args:
        control_tokens: name of each control token to its id.
    """
    names = [name for name in END_NAMES if name in control_tokens]
    if {"<|return|>", "<|call|>"} <= set(names) and "<|end|>" in names:
        # In this format a turn has several messages, each with an end of its own.
        names.remove("<|end|>")
    return [control_tokens[name] for name in names]


def checked_ids(declared: Iterable[tuple[str, Any]], num_tokens: int) -> list[int]:
    """Return the declared token ids, without repeats and without what is no id.

    Args:
        declared: what declares each id, for the warning, and the value found there;
            a list declares several and None none.
        num_tokens: size of the vocabulary.
    """
    ids: dict[int, None] = {}
    for source, value in declared:
        for token_id in value if isinstance(value, list | tuple) else [value]:
            if token_id is None:
                continue
            if type(token_id) is int and 0 <= token_id < num_tokens:
                ids[token_id] = None
            else:
                warnings.warn(
                    f"{source}: expected a token id from 0 to {num_tokens - 1}, got "
                    f"{_short(token_id)}; it is ignored",
                    stacklevel=2,
                )
    return list(ids)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
