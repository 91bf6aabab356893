"""What a checkpoint, of either format, says about its tokenizer."""

from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """All a `Tokenizer` is made of.

    Attributes:
        backend: vocabulary, merges, normaliser, pre-tokeniser and decoder.
        bos_token_id: the token that begins a sequence, None where there is none.
        eos_token_ids: tokens that end an answer, the checkpoint's main one first.
        add_bos: true if a plain prompt begins with `bos_token_id`.
        chat_template: Jinja source, None where the checkpoint has none.
        tool_template: Jinja source for chats with tools, None where `chat_template`
            serves for them too.
    """

    backend: tokenizers.Tokenizer
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None
    tool_template: str | None = None
