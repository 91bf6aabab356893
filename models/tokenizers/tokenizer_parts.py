"""What a checkpoint, of either format, says about its tokenizer."""

from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """All a `Tokenizer` is made of.

    backend: vocabulary, merges, normaliser, pre-tokeniser and decoder.
    bos_token_id: the token that begins a sequence, None where there is none.
    eos_token_ids: tokens that end an answer; the first is the checkpoint's main one.
    add_bos: whether a plain prompt begins with `bos_token_id`.
    chat_template: Jinja source, None where the checkpoint has none.
    """

    backend: tokenizers.Tokenizer
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None
