"""What the config formats say about rotary frequencies."""

from collections.abc import Mapping

from deft_jax.errors import DeftError

from .fields import Fields
from .rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    longrope_attention_factor,
    yarn_attention_factor,
)

_HF_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def rope_from_hf(
    fields: Fields, context_length: int
) -> tuple[float, RopeScaling | None]:
    """Read `(theta, scaling)` from a config.json of any age.

    `rope_parameters` is what transformers 5 writes, theta included; `rope_scaling`
    what older ones write, with the kind under `rope_type` or, older still, `type`.

    Args:
        fields: content of config.json.
        context_length: `max_position_embeddings`.

    Raises:
        DeftError: the kind is unknown, or a number is missing or impossible.
    """
    key = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    values = fields.values.get(key) or {}
    if not isinstance(values, Mapping):
        raise fields.error(key, "an object")
    rope = Fields(values=values, source=f"{fields.source}: {key}")
    rope.require("partial_rotary_factor", (None, 1))
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    kind_key = "rope_type" if "rope_type" in values else "type"
    rope.require(kind_key, (None, *_HF_KINDS))
    kind = values.get(kind_key)
    if kind in (None, "default"):
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=rope.number("factor"))
    if kind == "dynamic":
        rope.number("factor")
        return theta, None
    # Phi-3 and its kin keep the length beside the object, which then wins.
    original = fields.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", context_length),
    )
    if kind == "llama3":
        return theta, _llama3_from_hf(rope, original)
    if kind == "yarn":
        _check_theta(rope.source, theta)
        return theta, _yarn_from_hf(rope, original, context_length)
    return theta, _longrope_from_hf(rope, original, context_length)


def _llama3_from_hf(rope: Fields, original: int) -> Llama3Scaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"more than low_freq_factor {low:g}")
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context_length=original,
    )


def _yarn_from_hf(rope: Fields, original: int, context_length: int) -> YarnScaling:
    factor = rope.number("factor", context_length / original)
    attention_factor = yarn_attention_factor(factor)
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        attention_factor = yarn_attention_factor(
            factor, rope.number("mscale"), rope.number("mscale_all_dim")
        )
    return YarnScaling(
        factor=factor,
        attention_factor=rope.number("attention_factor", attention_factor),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        original_context_length=original,
        truncate=rope.flag("truncate", True),
    )


def _longrope_from_hf(
    rope: Fields, original: int, context_length: int
) -> LongRopeScaling:
    factor = rope.number("factor", context_length / original)
    if original == 1:
        raise rope.error("original_max_position_embeddings", "more than 1")
    return LongRopeScaling(
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
        attention_factor=rope.number(
            "attention_factor", longrope_attention_factor(factor, original)
        ),
        original_context_length=original,
        is_long=context_length > original,
    )


def rope_from_gguf(
    fields: Fields,
    context_length: int,
    long_factors: tuple[float, ...] | None = None,
    short_factors: tuple[float, ...] | None = None,
) -> tuple[float, RopeScaling | None]:
    """Read `(theta, scaling)` from GGUF metadata.

    Llama-3 scaling is not among them: GGUF stores its divisors as a tensor.

    Args:
        fields: metadata of the GGUF file.
        context_length: `llama.context_length`.
        long_factors: content of the tensor `rope_factors_long.weight`, [D / 2].
        short_factors: content of the tensor `rope_factors_short.weight`, [D / 2].

    Raises:
        DeftError: the kind of scaling is unknown, or what it needs is missing.
    """
    theta = fields.number("llama.rope.freq_base", 10_000.0)
    key = "llama.rope.scaling.type"
    fields.require(key, (None, "none", "linear", "yarn", "longrope"))
    kind = fields.values.get(key)
    factor = _gguf_factor(fields)
    if kind == "yarn":
        _check_theta(fields.source, theta)
        return theta, _yarn_from_gguf(fields, factor or 1.0, context_length)
    if kind == "longrope":
        if long_factors is None or short_factors is None:
            raise DeftError(
                f"{fields.source}: longrope scaling needs the tensors"
                " rope_factors_long.weight and rope_factors_short.weight; got"
                f" {'one' if long_factors or short_factors else 'none'} of them"
            )
        if factor not in (None, 1.0):
            raise fields.error("llama.rope.scaling.factor", "none with longrope")
        original = _gguf_original_length(fields, context_length)
        return theta, LongRopeScaling(
            short_factors=short_factors,
            long_factors=long_factors,
            attention_factor=fields.number("llama.rope.scaling.attn_factor", 1.0),
            original_context_length=original,
            is_long=context_length > original,
        )
    # A factor without a type is linear, as in llama.cpp.
    if factor is None or kind == "none":
        return theta, None
    return theta, LinearScaling(factor=factor)


def _gguf_factor(fields: Fields) -> float | None:
    # A factor of 0 means none.
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        if fields.values.get(key):
            return fields.number(key)
    return None


def _gguf_original_length(fields: Fields, context_length: int) -> int:
    return fields.integer("llama.rope.scaling.original_context_length", context_length)


def _yarn_from_gguf(fields: Fields, factor: float, context_length: int) -> YarnScaling:
    prefix = "llama.rope.scaling"
    fields.require(f"{prefix}.yarn_ext_factor", (None, 1))
    log_multiplier = 0.0
    if fields.values.get(f"{prefix}.yarn_log_multiplier"):
        log_multiplier = fields.number(f"{prefix}.yarn_log_multiplier")
    attention_factor = yarn_attention_factor(factor, 1.0, log_multiplier)
    for name in ("attn_factor", "yarn_attn_factor"):
        attention_factor *= fields.number(f"{prefix}.{name}", 1.0)
    return YarnScaling(
        factor=factor,
        attention_factor=attention_factor,
        beta_fast=fields.number(f"{prefix}.yarn_beta_fast", 32.0),
        beta_slow=fields.number(f"{prefix}.yarn_beta_slow", 1.0),
        original_context_length=_gguf_original_length(fields, context_length),
    )


def _check_theta(source: str, theta: float) -> None:
    if theta <= 1:
        raise DeftError(
            f"{source}: the rotary base is {theta:g}; YaRN needs more than 1"
        )
