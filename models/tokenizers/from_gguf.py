"""The tokenizer that the metadata of a GGUF file describes."""

import warnings
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from deft_jax.errors import DeftError

from .detokenizer import SPACE_MARK
from .gguf_vocabulary import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    GGUFVocabulary,
    required,
)
from .token_roles import END_NAMES, ORDINARY_TEXTS, checked_ids, ends_by_name
from .tokenizer_parts import TokenizerParts
from .word_splits import DEFAULT_SPLIT, SPLIT_OF_PRE, WordSplit

_LANDMARKS = {
    "llama-bpe": {128000: "<|begin_of_text|>"},
    "qwen2": {151643: "<|endoftext|>", 151644: "<|im_start|>"},
    "deepseek-llm": {100000: "<\uff5cbegin\u2581of\u2581sentence\uff5c>"},
    "deepseek-coder": {32013: "<\uff5cbegin\u2581of\u2581sentence\uff5c>"},
    "smollm": {1: "<|im_start|>", 17: "!", 49151: "ectable"},
    "gpt-2": {50256: "<|endoftext|>"},
}
"""Pieces by which a vocabulary is known where the file does not name it."""


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Build the tokenizer of a GGUF file from the file's metadata.

    Args:
        metadata: plain Python values by their GGUF keys (`tokenizer.ggml.tokens`, ...).

    Raises:
        DeftError: a key is missing or of the wrong type, or the kind of vocabulary is
            not supported.
    """
    model = required(metadata, "model")
    if model not in ("gpt2", "llama"):
        raise DeftError(
            f"expected tokenizer.ggml.model 'gpt2' or 'llama', got {model!r}; "
            "use a checkpoint with one of these"
        )
    vocabulary = GGUFVocabulary.from_metadata(metadata)
    is_sentencepiece = model == "llama"
    if is_sentencepiece:
        backend, adds_bos = _sentencepiece(vocabulary), True
    else:
        backend, adds_bos = _byte_level(vocabulary)
    bos = _ids(vocabulary, ["bos_token_id"], 1 if is_sentencepiece else None)
    ends = _ids(
        vocabulary,
        ["eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids"],
        2 if is_sentencepiece else None,
    )
    ends = list(dict.fromkeys([*ends, *ends_by_name(_control_tokens(vocabulary))]))
    _add_tokens(backend, vocabulary, {*bos, *ends})
    return TokenizerParts(
        backend=backend,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(ends),
        add_bos=bool(vocabulary.value("add_bos_token", int, adds_bos)),
        chat_template=_template(metadata, "tokenizer.chat_template"),
        tool_template=_template(metadata, "tokenizer.chat_template.tool_use"),
    )


def read_sentencepiece_backend(vocabulary: GGUFVocabulary) -> Tokenizer:
    """Return the tokenizer of a SentencePiece vocabulary, without ends and chats.

    Raises:
        DeftError: the scores are missing or do not fit the tokens.
    """
    backend = _sentencepiece(vocabulary)
    _add_tokens(backend, vocabulary, set())
    return backend


def _ids(
    vocabulary: GGUFVocabulary, names: list[str], default: int | None
) -> list[int]:
    """Return the ids behind the keys; the default is that of the first key."""
    keys = [f"tokenizer.ggml.{name}" for name in names]
    declared = [(key, vocabulary.metadata.get(key)) for key in keys]
    num_tokens = len(vocabulary.pieces)
    if keys[0] not in vocabulary.metadata and (default or num_tokens) < num_tokens:
        declared[0] = keys[0], default
    return checked_ids(declared, num_tokens)


def _control_tokens(vocabulary: GGUFVocabulary) -> dict[str, int]:
    """Return the tokens whose names end answers, and that are no ordinary text."""
    types = vocabulary.types
    return {
        piece: token_id
        for token_id, piece in enumerate(vocabulary.pieces)
        if piece in END_NAMES
        and (types[token_id] != NORMAL or piece not in ORDINARY_TEXTS)
    }


def _template(metadata: Mapping[str, Any], key: str) -> str | None:
    source = metadata.get(key)
    if source is None or isinstance(source, str):
        return source
    raise DeftError(
        f"expected {key} to be text, got a {type(source).__name__}; "
        "the GGUF file is damaged"
    )


def _bpe(
    vocabulary: GGUFVocabulary, merges: list[tuple[str, str]], **options: Any
) -> Tokenizer:
    ids = {piece: token_id for token_id, piece in enumerate(vocabulary.pieces)}
    try:
        return Tokenizer(models.BPE(ids, merges, **options))
    except Exception as error:  # The library raises nothing narrower.
        raise DeftError(f"the GGUF file's vocabulary is damaged: {error}") from error


def _byte_level(vocabulary: GGUFVocabulary) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether its family begins prompts with BOS."""
    split = _word_split(vocabulary)
    backend = _bpe(vocabulary, vocabulary.merges(), ignore_merges=split.ignore_merges)
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, split.adds_bos


def _word_split(vocabulary: GGUFVocabulary) -> WordSplit:
    """Return how words are cut: what the file names, else what its pieces suggest."""
    pre = vocabulary.value("pre", str, "default")
    if pre == "default":
        pieces = dict(enumerate(vocabulary.pieces))
        for known, landmarks in _LANDMARKS.items():
            if landmarks.items() <= pieces.items():
                return SPLIT_OF_PRE[known]
        warnings.warn(
            "the GGUF file does not name its pre-tokenizer (tokenizer.ggml.pre), and "
            f"its {len(pieces)} tokens are of no known model: text may be cut into "
            "other tokens than in training, for worse answers; convert the model anew",
            stacklevel=2,
        )
        return DEFAULT_SPLIT
    if pre not in SPLIT_OF_PRE:
        known = ", ".join(sorted(SPLIT_OF_PRE))
        raise DeftError(
            f"expected tokenizer.ggml.pre to be one of {known}; got {pre!r}; "
            "use a checkpoint with one of these"
        )
    return SPLIT_OF_PRE[pre]


def _sentencepiece(vocabulary: GGUFVocabulary) -> Tokenizer:
    unknown = [i for i, kind in enumerate(vocabulary.types) if kind == UNKNOWN]
    backend = _bpe(
        vocabulary,
        _merges_by_score(vocabulary),
        unk_token=vocabulary.pieces[unknown[0]] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    spaces = normalizers.Replace(" ", SPACE_MARK)
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback()]
    steps.append(decoders.Fuse())
    if vocabulary.value("add_space_prefix", int, True):
        prefix = normalizers.Prepend(SPACE_MARK)
        backend.normalizer = normalizers.Sequence([prefix, spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_score(vocabulary: GGUFVocabulary) -> list[tuple[str, str]]:
    """Return the merges that build every normal piece out of two, best score first.

    SentencePiece keeps no merges: it joins the neighbours whose piece scores best.
    Other pieces take no part, or plain text could become a control token.
    """
    scores, types = vocabulary.scores(), vocabulary.types
    ids = {p: i for i, p in enumerate(vocabulary.pieces) if types[i] == NORMAL}
    merges = [
        (scores[token_id], piece[:cut], piece[cut:])
        for piece, token_id in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [(left, right) for _, left, right in merges]


def _add_tokens(
    backend: Tokenizer, vocabulary: GGUFVocabulary, roles: set[int]
) -> None:
    """Declare the tokens that are matched before any merge, special or not.

    Args:
        backend: the tokenizer that learns them.
        vocabulary: all tokens and their types.
        roles: ids that begin a sequence or end an answer, special whatever their type.
    """
    special, plain = [], []
    kinds = enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
    for token_id, (piece, kind) in kinds:
        if kind in (UNKNOWN, CONTROL) or token_id in roles:
            special.append(AddedToken(piece, special=True, normalized=False))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(piece, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
