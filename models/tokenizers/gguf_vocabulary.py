"""The vocabulary in the metadata of a GGUF file: typed, and checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deft_jax.errors import DeftError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of `tokenizer.ggml.token_type` that matter here."""


@dataclass(frozen=True)
class GGUFVocabulary:
    """The pieces of a GGUF file's tokenizer and what else its metadata says.

    Attributes:
        metadata: plain Python values by their GGUF keys.
        pieces: text of each token, in the spelling of the vocabulary.
        types: kind of each token, such as `CONTROL`.
    """

    metadata: Mapping[str, Any]
    pieces: Sequence[str]
    types: Sequence[int]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "GGUFVocabulary":
        """Read the tokens and their types.

        Raises:
            DeftError: they are missing, of the wrong type, or of different lengths.
        """
        pieces = required_list(metadata, "tokens", str)
        if "tokenizer.ggml.token_type" not in metadata:
            return cls(metadata, pieces, [NORMAL] * len(pieces))
        types = required_list(metadata, "token_type", int)
        if len(types) != len(pieces):
            raise DeftError(
                f"expected {len(pieces)} entries in tokenizer.ggml.token_type, one for "
                f"each token, got {len(types)}; the GGUF file is damaged"
            )
        return cls(metadata, pieces, types)

    def value(self, name: str, kind: type, default: Any = None) -> Any:
        """Return the value behind `tokenizer.ggml.`, the default where it is missing.

        Raises:
            DeftError: the value is of another type than `kind`.
        """
        key = f"tokenizer.ggml.{name}"
        found = self.metadata.get(key)
        if found is None:
            return default
        if not isinstance(found, kind):
            raise DeftError(
                f"expected {key} to be a {kind.__name__}, got a "
                f"{type(found).__name__}; the GGUF file is damaged"
            )
        return found

    def scores(self) -> Sequence[float]:
        """Return the score of each token, the best the highest.

        Raises:
            DeftError: they are missing, of the wrong type, or not one for each token.
        """
        scores = required_list(self.metadata, "scores", int | float)
        if len(scores) != len(self.pieces):
            raise DeftError(
                f"expected {len(self.pieces)} entries in tokenizer.ggml.scores, one "
                f"for each token, got {len(scores)}; the GGUF file is damaged"
            )
        return scores

    def merges(self) -> list[tuple[str, str]]:
        """Return the pairs of pieces that are joined, the first ones first.

        Raises:
            DeftError: they are missing, or of the wrong type.
        """
        merges = []
        for text in required_list(self.metadata, "merges", str):
            left, _, right = text.partition(" ")
            merges.append((left, right))
        return merges


def required(metadata: Mapping[str, Any], name: str) -> Any:
    """Return the value behind `tokenizer.ggml.`.

    Raises:
        DeftError: the metadata has no such value.
    """
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise DeftError(
            f"expected {key} in the GGUF file's metadata, found none; "
            "use a file that was converted with its tokenizer"
        )
    return metadata[key]


def required_list(metadata: Mapping[str, Any], name: str, kind: Any) -> Sequence[Any]:
    """Return the list behind `tokenizer.ggml.`, all of whose entries are of one kind.

    Raises:
        DeftError: the metadata has no such value, or it is no such list.
    """
    values = required(metadata, name)
    if not isinstance(values, list | tuple):
        raise DeftError(
            f"expected tokenizer.ggml.{name} to be a list, got a "
            f"{type(values).__name__}; the GGUF file is damaged"
        )
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise DeftError(
                f"expected entry {index} of tokenizer.ggml.{name} to be a "
                f"{getattr(kind, '__name__', kind)}, got a {type(value).__name__}; "
                "the GGUF file is damaged"
            )
    return values
