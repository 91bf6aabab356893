"""Text to token ids and back, for Hugging Face folders and GGUF files alike."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deft_jax.errors import DeftError

from .detokenizer import Detokenizer, PieceCodec
from .from_folder import read_folder_tokenizer
from .from_gguf import read_gguf_tokenizer
from .tokenizer_parts import TokenizerParts


class Tokenizer:
    """A checkpoint's vocabulary: encodes prompts, decodes answers, formats chats."""

    def __init__(self, parts: TokenizerParts):
        """Wrap what a checkpoint says; see `from_folder` and `from_gguf`.

        Raises:
            DeftError: the vocabulary is neither byte-level nor SentencePiece.
        """
        self._parts = parts
        self._backend = parts.backend
        self._codec = PieceCodec.from_backend(parts.backend)
        self._added = parts.backend.get_added_tokens_decoder()
        self._special = frozenset(i for i, t in self._added.items() if t.special)
        self._bytes: dict[int, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Read a local folder laid out as Hugging Face checkpoints are.

        Raises:
            DeftError: there is no tokenizer, or a file cannot be read.
        """
        return cls(read_folder_tokenizer(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Build the tokenizer that the metadata of a GGUF file describes.

        Args:
            metadata: plain Python values by their GGUF keys.

        Raises:
            DeftError: a key is missing, or the kind of vocabulary is not supported.
        """
        return cls(read_gguf_tokenizer(metadata))

    @property
    def vocab_size(self) -> int:
        """Number of tokens; a model may have more logits, which stand for no text."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a sequence, None where there is none."""
        return self._parts.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, the checkpoint's main one first."""
        return self._parts.eos_token_ids

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that steer the model and are no text."""
        return self._special

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Name of each special token, as `<|im_end|>`, to its id."""
        return {self._added[i].content: i for i in sorted(self._special)}

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
    ) -> list[int]:
        """Return the token ids of `text`.

        Characters for which the vocabulary has neither a piece nor bytes are dropped,
        as its own tokenizer drops them.

        Args:
            text: the prompt.
            add_special_tokens: begin with BOS if the checkpoint asks for it; where the
                text itself begins with BOS, no second one is put before it.
            parse_special: turn `<|im_end|>` and the like into special tokens, which a
                prompt that is already formatted needs; otherwise they are plain text,
                so that what users write cannot steer the model.

        Raises:
            DeftError: `text` holds half of a surrogate pair.
        """
        _check_unicode(text)
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            ids = self._backend.encode(text, add_special_tokens=False).ids
        bos = self.bos_token_id
        if add_special_tokens and self._parts.add_bos and bos is not None:
            return ids if ids[:1] == [bos] else [bos, *ids]
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of `apply_chat_template`, special tokens parsed.

        Args:
            messages: turns, oldest first, each with at least `role` and `content`.
            tools: JSON schemas of the functions that the model may call.
            add_generation_prompt: end with the opening of the assistant's turn.
            template_args: variables of the template's own, such as `enable_thinking`.

        Raises:
            DeftError: there is no template, it is broken, it refuses the messages, or
                its text holds half of a surrogate pair.
        """
        text = self.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_args=template_args,
        )
        return self.encode(text, add_special_tokens=False, parse_special=True)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt that the checkpoint's template makes of `messages`.

        Args:
            messages: turns, oldest first, each with at least `role` and `content`.
            tools: JSON schemas of the functions that the model may call.
            add_generation_prompt: end with the opening of the assistant's turn.
            template_args: variables of the template's own, such as `enable_thinking`.

        Raises:
            DeftError: there is no template, it is broken, or it refuses the messages.
        """
        eos = self.eos_token_ids[0] if self.eos_token_ids else None
        parts = self._parts
        # Imported where it is needed: plain prompts need no Jinja.
        from .chat_template import render_chat_template

        return render_chat_template(
            (parts.tool_template if tools else None) or parts.chat_template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_args=template_args,
            bos_token=self._piece(self.bos_token_id),
            eos_token=self._piece(eos),
        )

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; U+FFFD stands for bytes that are not UTF-8.

        Ids outside the vocabulary have no text.
        """
        skipped = self._special if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(i) for i in ids if i not in skipped)
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self._codec.strips_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token stands for; none outside the vocabulary."""
        data = self._bytes.get(token_id)
        if data is None:
            piece = self._piece(token_id)
            added = token_id in self._added
            data = b"" if piece is None else self._codec.to_bytes(piece, added=added)
            self._bytes[token_id] = data
        return data

    def stream(
        self, context: Iterable[int] = (), *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """Return a detokenizer for the tokens that follow `context`.

        Args:
            context: token ids that come before, such as the prompt; their text is not
                returned again. Without it the first token begins a text, and a
                SentencePiece vocabulary takes the space before it off.
            skip_special_tokens: leave special tokens out of the text.
        """
        detokenizer = Detokenizer(
            self.token_bytes,
            skipped=self._special if skip_special_tokens else frozenset(),
            strips_space=self._codec.strips_space,
        )
        for token_id in context:
            detokenizer.push(token_id)
        return detokenizer

    def _piece(self, token_id: int | None) -> str | None:
        if token_id is None or not 0 <= token_id < 2**32:
            return None
        return self._backend.id_to_token(int(token_id))


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DeftError(
            f"expected a prompt in valid Unicode, got half of a surrogate pair at "
            f"character {error.start}; give the prompt in UTF-8"
        ) from error
