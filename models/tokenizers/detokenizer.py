"""Text of tokens: the bytes each vocabulary piece stands for, and their text."""

import codecs
import json
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import tokenizers

from deft_jax.errors import DeftError

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece writes a space as this character."""


def _byte_level_alphabet() -> dict[int, int]:
    """Map the code point by which GPT-2 writes a byte to that byte.

    Printable bytes are written as themselves, the rest as code points from 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {b: b for b in printable} | {256 + n: b for n, b in enumerate(others)}


_BYTE_OF_CODE_POINT = _byte_level_alphabet()
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, kw_only=True)
class PieceCodec:
    """How one vocabulary spells bytes.

    Attributes:
        byte_level: true if pieces are written in GPT-2's byte alphabet, false if a
            space is written as SentencePiece does.
        byte_fallback: true if pieces such as `<0x0A>` stand for a single byte.
        strips_space: true if the space that the tokenizer puts before a text is taken
            off again.
    """

    byte_level: bool
    byte_fallback: bool = False
    strips_space: bool = False

    @classmethod
    def from_backend(cls, backend: tokenizers.Tokenizer) -> "PieceCodec":
        """Read the codec off the decoder of `backend`.

        Raises:
            DeftError: the decoder is neither byte-level nor SentencePiece.
        """
        decoders = _flat_decoders(backend.decoder)
        kinds = [decoder["type"] for decoder in decoders]
        if "ByteLevel" in kinds:
            return cls(byte_level=True)
        marks = [d for d in decoders if _turns_marks_into_spaces(d)]
        if not marks:
            raise DeftError(
                "expected a byte-level or SentencePiece tokenizer, got the decoder "
                f"{kinds or None}; use a checkpoint with one of these"
            )
        return cls(
            byte_level=False,
            byte_fallback="ByteFallback" in kinds,
            strips_space=any(_strips_space(decoder) for decoder in decoders),
        )

    def to_bytes(self, piece: str, *, added: bool) -> bytes:
        """Return the bytes of one piece.

        Args:
            piece: its spelling in the vocabulary.
            added: true if it was added as plain text, not in the byte alphabet.
        """
        if self.byte_level:
            return piece.encode() if added else _byte_level_bytes(piece)
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        return piece.replace(SPACE_MARK, " ").encode()


class Detokenizer:
    """Text of a growing sequence of tokens, token by token.

    The texts that `push` and `flush` return make up `Tokenizer.decode` of all the
    tokens. A code point is returned only when its last byte has come; U+FFFD
    stands for bytes that can no longer become one. Each call costs the length of one
    piece, and `copy` costs nothing that grows with the sequence, so that the
    branches of a tree go on from their parent's copy.
    """

    __slots__ = ("_token_bytes", "_skipped", "_strips_space", "_pending")

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        skipped: Container[int] = (),
        strips_space: bool = False,
    ):
        """Start at the beginning of a sequence.

        Args:
            token_bytes: gives the bytes of a token id.
            skipped: token ids without text, such as special tokens.
            strips_space: drop one space at the very beginning of the text.
        """
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._strips_space = strips_space
        self._pending = b""

    def push(self, token_id: int) -> str:
        """Add one token; return the text it completes, often none."""
        if token_id in self._skipped:
            return ""
        return self._take(self._token_bytes(token_id), final=False)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished code point.

        Copies for the branches must be taken before, or they lose those bytes.
        """
        return self._take(b"", final=True)

    def copy(self) -> "Detokenizer":
        """Return an independent detokenizer in the same state."""
        twin = Detokenizer(
            self._token_bytes, skipped=self._skipped, strips_space=self._strips_space
        )
        twin._pending = self._pending
        return twin

    def _take(self, data: bytes, *, final: bool) -> str:
        data = self._pending + data
        text, consumed = codecs.utf_8_decode(data, "replace", final)
        self._pending = data[consumed:]
        if text and self._strips_space:
            self._strips_space = False
            text = text.removeprefix(" ")
        return text


def _byte_level_bytes(piece: str) -> bytes:
    """Return the bytes of a piece in GPT-2's alphabet, of any other its UTF-8."""
    try:
        return bytes(_BYTE_OF_CODE_POINT[ord(character)] for character in piece)
    except KeyError:
        return piece.encode()


def _flat_decoders(decoder: Any) -> list[dict[str, Any]]:
    """Describe the steps of a backend's decoder in order, as `tokenizer.json` does."""
    if decoder is None:
        return []
    # Its pickled state is the JSON form, which no public attribute gives.
    description = json.loads(decoder.__getstate__())
    return _flatten(description)


def _flatten(description: dict[str, Any]) -> list[dict[str, Any]]:
    if description["type"] != "Sequence":
        return [description]
    return [step for part in description["decoders"] for step in _flatten(part)]


def _turns_marks_into_spaces(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return decoder["replacement"] == SPACE_MARK
    return decoder["type"] == "Replace" and decoder["pattern"] == {"String": SPACE_MARK}


def _strips_space(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return decoder["prepend_scheme"] != "never"
    return (
        decoder["type"] == "Strip"
        and decoder["content"] == " "
        and decoder["start"] > 0
    )
