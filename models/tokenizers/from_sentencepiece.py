"""The tokenizer in a SentencePiece model file, `tokenizer.model`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers

from deft_jax.errors import DeftError

from .from_gguf import read_sentencepiece_backend
from .gguf_vocabulary import GGUFVocabulary

_BPE = 2


def read_sentencepiece(
    path: Path, added: Mapping[int, tuple[str, bool]]
) -> tuple[Tokenizer, dict[str, Any]]:
    """Convert a SentencePiece model.

    Args:
        path: the `tokenizer.model` file.
        added: tokens that the checkpoint adds to the model's: the text of each by its
            id, and whether it is special.

    Returns:
        The tokenizer, and what `tokenizer_config.json` need not say.

    Raises:
        DeftError: the package `sentencepiece` is missing, or the file is damaged or of
            a kind that is not supported.
    """
    model = _parsed(path)
    if model.trainer_spec.model_type != _BPE:
        raise DeftError(
            f"{path}: expected a SentencePiece model of type BPE, got type "
            f"{model.trainer_spec.model_type}; use a checkpoint with tokenizer.json"
        )
    normalizer = model.normalizer_spec
    if normalizer.precompiled_charsmap:
        raise DeftError(
            f"{path}: expected a SentencePiece model that leaves characters as they "
            f"are, got the normaliser {normalizer.name!r}; use a checkpoint with "
            "tokenizer.json"
        )
    values = {
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],
        "add_space_prefix": normalizer.add_dummy_prefix,
    }
    metadata = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    # The kinds of pieces have the same numbers in both formats.
    backend = read_sentencepiece_backend(GGUFVocabulary.from_metadata(metadata))
    if normalizer.remove_extra_whitespaces:
        outer = normalizers.Replace(Regex(r"\A +| +\z"), "")
        inner = normalizers.Replace(Regex(" {2,}"), " ")
        backend.normalizer = normalizers.Sequence([outer, inner, backend.normalizer])
    _add(backend, path, added)
    defaults: dict[str, Any] = {"add_bos_token": True}
    for name in ("bos", "eos"):
        token_id = getattr(model.trainer_spec, f"{name}_id")
        if 0 <= token_id < len(model.pieces):
            defaults[f"{name}_token"] = model.pieces[token_id].piece
    return backend, defaults


def _parsed(path: Path) -> Any:
    try:
        formats: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise DeftError(
            f"{path.parent} has a tokenizer.model and no tokenizer.json, which takes "
            "the package sentencepiece; run: pip install 'deft-jax[sentencepiece]'"
        ) from error
    model = formats.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # The library's own class differs between releases.
        reason = " ".join(str(error).split())
        raise DeftError(f"cannot read {path} as SentencePiece: {reason}") from error
    if not model.pieces:
        raise DeftError(f"cannot read {path} as SentencePiece: it has no pieces")
    return model


def _add(backend: Tokenizer, path: Path, added: Mapping[int, tuple[str, bool]]) -> None:
    """Give the tokenizer the checkpoint's own tokens, which must get their ids."""
    for token_id, (text, special) in sorted(added.items()):
        token = AddedToken(text, special=special, normalized=False)
        if special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        if (got := backend.token_to_id(text)) != token_id:
            raise DeftError(
                f"{path.parent}: expected the added token {text[:60]!r} to have the id "
                f"{token_id}, got {got} behind the tokens of {path.name}"
            )
