"""What the config formats call the arguments of `LlamaConfig`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_jax.errors import DeftError

from .fields import Fields
from .rope_sources import rope_from_gguf, rope_from_hf

ATTENTION_PROJECTIONS = tuple(f"self_attn.{part}_proj" for part in "qkvo")
MLP_PROJECTIONS = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
PROJECTIONS = ATTENTION_PROJECTIONS + MLP_PROJECTIONS
"""Matrices of a layer by their Hugging Face names; each may have a bias."""

_HF_SUPPORTED = {
    "model_type": ("llama", "mistral"),
    "hidden_act": (None, "silu"),
    "partial_rotary_factor": (None, 1),
    "quantization_config": (None,),
}
_HF_CONTEXT_LENGTHS = {"llama": 2048, "mistral": 131_072}
"""What transformers takes where `max_position_embeddings` is absent."""


def hf_arguments(values: Mapping[str, object], source: str) -> dict[str, Any]:
    """Return the arguments of `LlamaConfig` that a config.json holds.

    What is absent takes the default of transformers' `LlamaConfig`. A Mistral without a
    sliding window is a Llama; `pretraining_tp` changes nothing in what is computed.

    Args:
        values: the decoded JSON object.
        source: what errors call the file.

    Raises:
        DeftError: a value is missing, malformed or not supported.
    """
    fields = Fields(values=values, source=source)
    for key, supported in _HF_SUPPORTED.items():
        fields.require(key, supported)
    kind = str(values["model_type"])
    num_q_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    context_length = fields.integer(
        "max_position_embeddings", _HF_CONTEXT_LENGTHS[kind]
    )
    if kind == "mistral":
        _check_window(fields, context_length)
    theta, scaling = rope_from_hf(fields, context_length)
    return dict(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        mlp_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_q_heads=num_q_heads,
        num_kv_heads=_hf_kv_heads(fields, kind, num_q_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_q_heads),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=fields.number("rms_norm_eps", 1e-6),
        context_length=context_length,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        biases=frozenset() if kind == "mistral" else _hf_biases(fields),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def _hf_kv_heads(fields: Fields, kind: str, num_q_heads: int) -> int:
    # Mistral's default is 8, and a null means one for each query head.
    absent = "num_key_value_heads" not in fields.values
    default = 8 if kind == "mistral" and absent else num_q_heads
    return fields.integer("num_key_value_heads", default)


def _hf_biases(fields: Fields) -> frozenset[str]:
    attention = fields.flag("attention_bias", False)
    mlp = fields.flag("mlp_bias", False)
    return frozenset(ATTENTION_PROJECTIONS * attention + MLP_PROJECTIONS * mlp)


def _check_window(fields: Fields, context_length: int) -> None:
    # Transformers takes a window of 4096 where the key is absent.
    window = fields.values.get("sliding_window", 4096)
    if window is None:
        return
    if "sliding_window" not in fields.values or (
        fields.integer("sliding_window") < context_length
    ):
        raise DeftError(
            f"{fields.source}: a sliding window of {window} tokens is not supported;"
            f" expected sliding_window null or at least {context_length}, the whole"
            " context"
        )


def gguf_arguments(
    values: Mapping[str, object],
    rope_factors: Mapping[str, tuple[float, ...]],
    source: str,
) -> dict[str, Any]:
    """Return the arguments of `LlamaConfig` that GGUF metadata holds.

    `tie_embeddings` and `biases` are not among them: the tensors tell.

    Args:
        values: the metadata.
        rope_factors: name to content of the tensors of rotary divisors.
        source: what errors call the file.

    Raises:
        DeftError: a value is missing, malformed or not supported.
    """
    fields = Fields(values=values, source=source)
    fields.require("general.architecture", ("llama",))
    fields.require("llama.expert_count", (None, 0))
    num_q_heads = fields.integer("llama.attention.head_count")
    hidden_size = fields.integer("llama.embedding_length")
    head_dim = fields.integer("llama.attention.key_length", hidden_size // num_q_heads)
    fields.require("llama.attention.value_length", (None, head_dim))
    fields.require("llama.rope.dimension_count", (None, head_dim))
    context_length = fields.integer("llama.context_length")
    theta, scaling = rope_from_gguf(
        fields,
        context_length,
        long_factors=rope_factors.get("rope_factors_long.weight"),
        short_factors=rope_factors.get("rope_factors_short.weight"),
    )
    return dict(
        vocab_size=fields.integer("llama.vocab_size", _num_tokens(values)),
        hidden_size=hidden_size,
        mlp_size=fields.integer("llama.feed_forward_length"),
        num_layers=fields.integer("llama.block_count"),
        num_q_heads=num_q_heads,
        num_kv_heads=fields.integer("llama.attention.head_count_kv", num_q_heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rope_factors=rope_factors.get("rope_freqs.weight"),
        rms_eps=_shortest(fields.number("llama.attention.layer_norm_rms_epsilon")),
        context_length=context_length,
        bos_token_id=next(iter(fields.token_ids("tokenizer.ggml.bos_token_id")), None),
        eos_token_ids=_gguf_eos(fields),
    )


def _num_tokens(values: Mapping[str, object]) -> int | None:
    tokens = values.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, Sequence) and tokens else None


def _gguf_eos(fields: Fields) -> tuple[int, ...]:
    # A chat model may end a turn with another token than a text.
    ends = [
        fields.token_ids(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot")
    ]
    return tuple(dict.fromkeys(token for ids in ends for token in ids))


def _shortest(value: float) -> float:
    # GGUF stores float32, so 1e-5 arrives as 9.999999747378752e-06.
    return float(str(np.float32(value)))
