"""Frequencies of the rotary position embedding, plain and scaled to long contexts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .fields import Fields


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a checkpoint stretches its rotary frequencies beyond the trained context.

    kind: `"linear"` divides every frequency by `factor`, and the other numbers mean
        nothing; `"llama3"` divides only the low frequencies
    factor: divisor of the frequencies
    low_freq_factor, high_freq_factor: a frequency is divided if it makes fewer turns
        than the first within the original context, kept if more than the second,
        and interpolated between
    original_context_length: tokens of context before scaling
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


def inverse_frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    factors: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Return the angle per position of each rotated pair.

    Equivalent to `ROPE_INIT_FUNCTIONS` of Hugging Face transformers for the types
    default, linear and llama3; computed in float64 and rounded once.

    head_dim: D, even
    theta: base of the geometric series
    factors: D / 2 divisors, one for each frequency, applied before `scaling`

    Returns:
        [D / 2] float32, radians per position, highest frequency first.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if factors is not None:
        frequencies = frequencies / np.asarray(factors)
    if scaling is not None and scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling is not None:
        kept = _share_kept(frequencies, scaling)
        frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
    return frequencies.astype(np.float32)


def _share_kept(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    turns = scaling.original_context_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def rope_from_hf(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Read `(theta, scaling)` from a config.json of any age.

    `rope_parameters` is what transformers 5 writes, theta included; `rope_scaling`
    what older ones write, with the kind under `rope_type` or, older still, `type`.

    Raises:
        DeftError: the kind is not default, linear or llama3, or a number is missing.
    """
    key = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    values = fields.values.get(key) or {}
    if not isinstance(values, Mapping):
        raise fields.error(key, "an object")
    rope = Fields(values=values, source=f"{fields.source}: {key}")
    rope.require("partial_rotary_factor", (None, 1))
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    kind_key = "rope_type" if "rope_type" in values else "type"
    rope.require(kind_key, (None, "default", "linear", "llama3"))
    match values.get(kind_key):
        case "linear":
            return theta, RopeScaling(kind="linear", factor=rope.number("factor"))
        case "llama3":
            return theta, _llama3_from_hf(rope)
        case _:
            return theta, None


def _llama3_from_hf(rope: Fields) -> RopeScaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"more than low_freq_factor {low:g}")
    return RopeScaling(
        kind="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context_length=rope.integer("original_max_position_embeddings"),
    )


def rope_from_gguf(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Read `(theta, scaling)` from GGUF metadata.

    Llama-3 scaling is not among them: GGUF stores its divisors as a tensor.

    Raises:
        DeftError: the kind of scaling is not none or linear.
    """
    theta = fields.number("llama.rope.freq_base", 10_000.0)
    fields.require("llama.rope.scaling.type", (None, "none", "linear"))
    # A factor of 0 means none, and one without a type is linear, as in llama.cpp.
    keys = ("llama.rope.scaling.factor", "llama.rope.scale_linear")
    key = next((key for key in keys if fields.values.get(key)), None)
    if key is None or fields.values.get("llama.rope.scaling.type") == "none":
        return theta, None
    return theta, RopeScaling(kind="linear", factor=fields.number(key))
