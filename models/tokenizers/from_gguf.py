"""The tokenizer that the metadata of a GGUF file describes."""

from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from deft_jax.errors import DeftError

from .detokenizer import SPACE_MARK
from .tokenizer_parts import TokenizerParts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of `tokenizer.ggml.token_type` that matter here."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEXES = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
}
_FAMILIES = {
    "gpt-2": ("default", "gpt-2", "jais", "mpt", "olmo", "phi-2"),
    "smollm": ("codeshell", "command-r", "refact", "smollm", "starcoder"),
    "llama-bpe": ("falcon3", "llama-bpe", "llama-v3", "llama3"),
    "qwen2": ("deepseek-r1-qwen", "qwen2", "stablelm2"),
}
_FAMILY_OF_PRE = {pre: family for family, pres in _FAMILIES.items() for pre in pres}


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Build the tokenizer of a GGUF file from the file's metadata.

    metadata: plain Python values by their GGUF keys (`tokenizer.ggml.tokens`, ...).

    Raises:
        DeftError: a key is missing, or the kind of vocabulary is not supported.
    """
    model = _required(metadata, "model")
    if model == "gpt2":
        backend, adds_bos = _byte_level(metadata)
    elif model == "llama":
        backend, adds_bos = _sentencepiece(metadata)
    else:
        raise DeftError(
            f"expected tokenizer.ggml.model 'gpt2' or 'llama', got {model!r}; "
            "use a checkpoint with one of these"
        )
    _add_tokens(backend, metadata)
    return TokenizerParts(
        backend=backend,
        bos_token_id=_optional(metadata, "bos_token_id"),
        eos_token_ids=_eos_token_ids(metadata),
        add_bos=bool(_optional(metadata, "add_bos_token", adds_bos)),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _required(metadata: Mapping[str, Any], name: str) -> Any:
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise DeftError(
            f"expected {key} in the GGUF file's metadata, found none; "
            "use a file that was converted with its tokenizer"
        )
    return metadata[key]


def _optional(metadata: Mapping[str, Any], name: str, default: Any = None) -> Any:
    return metadata.get(f"tokenizer.ggml.{name}", default)


def _token_types(metadata: Mapping[str, Any]) -> list[int]:
    num_tokens = len(_required(metadata, "tokens"))
    types = _optional(metadata, "token_type", [NORMAL] * num_tokens)
    if len(types) != num_tokens:
        raise DeftError(
            f"expected {num_tokens} entries in tokenizer.ggml.token_type, one for each "
            f"token, got {len(types)}; the GGUF file is damaged"
        )
    return types


def _eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a sequence, a turn, or a message, without repeats."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [_optional(metadata, name) for name in names]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _bpe(
    metadata: Mapping[str, Any], merges: list[tuple[str, str]], **options: Any
) -> Tokenizer:
    pieces = _required(metadata, "tokens")
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    try:
        return Tokenizer(models.BPE(vocabulary, merges, **options))
    except Exception as error:  # The library raises nothing narrower.
        raise DeftError(f"the GGUF file's vocabulary is damaged: {error}") from error


def _byte_level(metadata: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether its family begins prompts with BOS."""
    pre = _optional(metadata, "pre", "default")
    family = _FAMILY_OF_PRE.get(pre)
    if family is None:
        known = ", ".join(sorted(_FAMILY_OF_PRE))
        raise DeftError(
            f"expected tokenizer.ggml.pre to be one of {known}; got {pre!r}; "
            "use a checkpoint with one of these"
        )
    merges = [_merge(text) for text in _required(metadata, "merges")]
    is_llama = family == "llama-bpe"
    backend = _bpe(metadata, merges, ignore_merges=is_llama)
    backend.pre_tokenizer = _pre_tokenizer(family)
    backend.decoder = decoders.ByteLevel()
    return backend, is_llama


def _merge(text: str) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    return left, right


def _pre_tokenizer(family: str) -> pre_tokenizers.Sequence:
    if family in _REGEXES:
        split = pre_tokenizers.Split(Regex(_REGEXES[family]), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, to_bytes])
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if family == "gpt-2":
        return pre_tokenizers.Sequence([to_bytes])
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, to_bytes])


def _sentencepiece(metadata: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and that its family begins prompts with BOS."""
    pieces = _required(metadata, "tokens")
    unknown = [i for i, kind in enumerate(_token_types(metadata)) if kind == UNKNOWN]
    backend = _bpe(
        metadata,
        _merges_by_score(metadata),
        unk_token=pieces[unknown[0]] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    spaces = normalizers.Replace(" ", SPACE_MARK)
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback()]
    steps.append(decoders.Fuse())
    if _optional(metadata, "add_space_prefix", True):
        prefix = normalizers.Prepend(SPACE_MARK)
        backend.normalizer = normalizers.Sequence([prefix, spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend, True


def _merges_by_score(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merge that build every normal piece out of two, the best score first.

    SentencePiece keeps no merges: it joins the neighbours whose piece scores best.
    Other pieces take no part, or plain text could become a control token.
    """
    pieces = _required(metadata, "tokens")
    scores = _required(metadata, "scores")
    types = _token_types(metadata)
    ids = {p: i for i, p in enumerate(pieces) if types[i] == NORMAL}
    merges = [
        (scores[token_id], piece[:cut], piece[cut:])
        for piece, token_id in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [(left, right) for _, left, right in merges]


def _add_tokens(backend: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Declare the tokens that are matched before any merge, special or not."""
    pieces, types = _required(metadata, "tokens"), _token_types(metadata)
    ends = {_optional(metadata, "bos_token_id"), *_eos_token_ids(metadata)}
    special, plain = [], []
    for token_id, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        if kind in (UNKNOWN, CONTROL) or token_id in ends:
            special.append(AddedToken(piece, special=True, normalized=False))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(piece, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
