"""What the config formats call the arguments of `LlamaConfig`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .fields import Fields
from .rope import rope_from_gguf, rope_from_hf

_HF_SUPPORTED = {
    "model_type": ("llama",),
    "hidden_act": (None, "silu"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1),
    "quantization_config": (None,),
}


def hf_arguments(values: Mapping[str, object], source: str) -> dict[str, Any]:
    """Return the arguments of `LlamaConfig` that a config.json holds.

    What is absent takes the default of transformers' `LlamaConfig`.

    Raises:
        DeftError: a value is missing, malformed or not supported.
    """
    fields = Fields(values=values, source=source)
    for key, supported in _HF_SUPPORTED.items():
        fields.require(key, supported)
    num_q_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    theta, scaling = rope_from_hf(fields)
    return dict(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        mlp_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_q_heads=num_q_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_q_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_q_heads),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=fields.number("rms_norm_eps", 1e-6),
        context_length=fields.integer("max_position_embeddings", 2048),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def gguf_arguments(values: Mapping[str, object], source: str) -> dict[str, Any]:
    """Return the arguments of `LlamaConfig` that GGUF metadata holds.

    `tie_embeddings` and `rope_factors` are not among them: the tensors tell.

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
    theta, scaling = rope_from_gguf(fields)
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
        rms_eps=_shortest(fields.number("llama.attention.layer_norm_rms_epsilon")),
        context_length=fields.integer("llama.context_length"),
        bos_token_id=fields.token_id("tokenizer.ggml.bos_token_id"),
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
