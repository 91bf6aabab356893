"""GGUF metadata of tokenizers small enough to be worked out by hand."""

from typing import Any

from tokenizers import pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BYTE_LEVEL_MERGES = ("h e", "l l", "he ll", "hell o", "1 2", "12 3", "123 4")


def byte_level_metadata(**overrides: Any) -> dict[str, Any]:
    """Return a byte-level BPE: all bytes, two control tokens and one user-defined.

    Args:
        overrides: values by the part of the key behind `tokenizer.ggml.`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<|begin|>", "<|end|>", "<tool é>", *alphabet]
    pieces += [merge.replace(" ", "") for merge in BYTE_LEVEL_MERGES]
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": pieces,
        "token_type": [CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(pieces) - 3),
        "merges": list(BYTE_LEVEL_MERGES),
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return _keyed(values | overrides)


def sentencepiece_metadata(**overrides: Any) -> dict[str, Any]:
    """Return a SentencePiece BPE with all byte pieces; the first scores are the best.

    Args:
        overrides: values by the part of the key behind `tokenizer.ggml.`.
    """
    words = ["▁a", "ab", "▁ab", "s>", "▁", "a", "b", "<", "s", ">", "é"]
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *byte_pieces, *words]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(words)
    values: dict[str, Any] = {
        "model": "llama",
        "tokens": pieces,
        "token_type": types,
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(words))],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _keyed(values | overrides)


def _keyed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by full GGUF keys; one of None leaves its key out."""
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}
