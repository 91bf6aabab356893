"""Shape and constants of a Llama, read from a checkpoint or taken from a table."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
import numpy.typing as npt

from deft_jax.errors import DeftError

from .config_sources import gguf_arguments, hf_arguments
from .rope import LongRopeScaling, RopeScaling, inverse_frequencies


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything about a Llama except its weights.

    Attributes:
        vocab_size: V.
        hidden_size: E, width of the residual stream.
        mlp_size: F, width inside the SwiGLU.
        num_layers: L.
        num_q_heads: H, a multiple of K.
        num_kv_heads: K.
        head_dim: D, even; H * D need not be E.
        rope_theta: base of the rotary frequencies.
        rope_scaling: stretch of the rotary frequencies, or `None`.
        rope_factors: D / 2 divisors of the rotary frequencies, or `None`.
        rms_eps: number that RMSNorm adds to the mean square.
        context_length: positions that a sequence may have at most.
        tie_embeddings: the output head is the embedding table.
        sliding_window: tokens that a query of the `sliding_layers` sees, itself
            counted; `None` where there are no such layers.
        sliding_layers: indices of the layers that see a window of the path, not all
            of it. Checkpoints with such layers are not read yet.
        biases: projections of a layer that add a bias, out of `PROJECTIONS`.
        bos_token_id: token that starts a text, or `None`.
        eos_token_ids: tokens any of which ends a generation.
    """

    vocab_size: int
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    rope_factors: tuple[float, ...] | None = None
    rms_eps: float
    context_length: int
    tie_embeddings: bool
    sliding_window: int | None = None
    sliding_layers: frozenset[int] = frozenset()
    biases: frozenset[str] = frozenset()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head: G = H / K."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def num_parameters(self) -> int:
        """Number of weights in the checkpoint, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.expected_tensors().values())

    def kv_bytes_per_token(self, dtype: npt.DTypeLike) -> int:
        """Return the bytes that K and V of one token take over all layers."""
        values = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return values * np.dtype(dtype).itemsize

    def inverse_frequencies(self) -> np.ndarray:
        """Return the rotary angle per position: [D / 2] float32, radians."""
        return inverse_frequencies(
            self.head_dim, self.rope_theta, self.rope_scaling, self.rope_factors
        )

    @property
    def rope_attention_factor(self) -> float:
        """Factor of the rotary cosines and sines."""
        return 1.0 if self.rope_scaling is None else self.rope_scaling.attention_factor

    def with_context_length(self, context_length: int) -> "LlamaConfig":
        """Return the config for sequences of fewer positions.

        LongRoPE takes its short factors where the original context suffices.

        Args:
            context_length: most positions of a sequence, at most the config's own.

        Raises:
            DeftError: the length is not between 1 and the config's own.
        """
        if not 1 <= context_length <= self.context_length:
            raise DeftError(
                f"context_length is {context_length}; expected 1 to"
                f" {self.context_length}, which the model was made for"
            )
        scaling = self.rope_scaling
        if isinstance(scaling, LongRopeScaling):
            is_long = context_length > scaling.original_context_length
            scaling = replace(scaling, is_long=is_long)
        return replace(self, context_length=context_length, rope_scaling=scaling)

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight of a layer by its Hugging Face name.

        Matrices are [output, input]; the order is that of a forward pass.
        """
        width, mlp = self.hidden_size, self.mlp_size
        q_rows, kv_rows = (
            heads * self.head_dim for heads in (self.num_q_heads, self.num_kv_heads)
        )
        return {
            "input_layernorm": (width,),
            "self_attn.q_proj": (q_rows, width),
            "self_attn.k_proj": (kv_rows, width),
            "self_attn.v_proj": (kv_rows, width),
            "self_attn.o_proj": (width, q_rows),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (mlp, width),
            "mlp.up_proj": (mlp, width),
            "mlp.down_proj": (width, mlp),
        }

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor under its Hugging Face name.

        Matrices are [output, input]; the order is that of a forward pass.
        """
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for index in range(self.num_layers):
            for name, shape in self.layer_shapes().items():
                shapes[f"model.layers.{index}.{name}.weight"] = shape
                if name in self.biases:
                    shapes[f"model.layers.{index}.{name}.bias"] = shape[:1]
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    @classmethod
    def from_hf(
        cls, values: Mapping[str, object], *, source: str = "config.json"
    ) -> "LlamaConfig":
        """Read the content of a Hugging Face config.json.

        Args:
            values: the decoded JSON object.
            source: what errors call the file.

        Raises:
            DeftError: a value is missing, malformed, or asks for a model other than a
                Llama.
        """
        return _checked(source, hf_arguments(values, source))

    @classmethod
    def from_gguf(
        cls,
        values: Mapping[str, object],
        *,
        tie_embeddings: bool,
        biases: frozenset[str] = frozenset(),
        rope_factors: Mapping[str, tuple[float, ...]] | None = None,
        source: str = "GGUF metadata",
    ) -> "LlamaConfig":
        """Read the metadata of a GGUF file of the llama architecture.

        Args:
            values: the metadata.
            tie_embeddings: the file has no tensor `output.weight`.
            biases: projections of a layer that have a bias in the file.
            rope_factors: content of its tensors `rope_freqs.weight`,
                `rope_factors_long.weight` and `rope_factors_short.weight`, [D / 2]
                each, as far as it has them.
            source: what errors call the file.

        Raises:
            DeftError: a value is missing, malformed or not supported.
        """
        arguments = gguf_arguments(values, rope_factors or {}, source)
        arguments |= dict(tie_embeddings=tie_embeddings, biases=biases)
        return _checked(source, arguments)


def checked_token_ids(
    ids: tuple[int, ...], vocab_size: int, source: str
) -> tuple[int, ...]:
    """Return the ids that are in a vocabulary; warn of the others.

    Args:
        ids: token ids that a config declares.
        vocab_size: V.
        source: what the warning calls the file.
    """
    inside = tuple(token for token in ids if 0 <= token < vocab_size)
    if len(inside) < len(ids):
        outside = ", ".join(str(token) for token in ids if token not in inside)
        warnings.warn(
            f"{source}: token ids {outside[:60]} are outside the vocabulary of"
            f" {vocab_size} and are ignored",
            stacklevel=2,
        )
    return inside


def _checked(source: str, arguments: dict[str, Any]) -> LlamaConfig:
    config = LlamaConfig(**arguments)
    heads, kv_heads = config.num_q_heads, config.num_kv_heads
    if heads % kv_heads:
        raise DeftError(
            f"{source}: {heads} query heads cannot share {kv_heads} KV heads evenly;"
            " expected a multiple"
        )
    if config.head_dim % 2 or config.head_dim == 0:
        raise DeftError(
            f"{source}: head_dim is {config.head_dim}; rotary embeddings need an even"
            " number"
        )
    _check_rope(source, config)
    bos = () if config.bos_token_id is None else (config.bos_token_id,)
    bos = checked_token_ids(bos, config.vocab_size, source)
    ends = checked_token_ids(config.eos_token_ids, config.vocab_size, source)
    return replace(config, bos_token_id=bos[0] if bos else None, eos_token_ids=ends)


def _check_rope(source: str, config: LlamaConfig) -> None:
    factors = [] if config.rope_factors is None else [config.rope_factors]
    if isinstance(config.rope_scaling, LongRopeScaling):
        factors += [config.rope_scaling.short_factors, config.rope_scaling.long_factors]
    for divisors in factors:
        if len(divisors) != config.head_dim // 2:
            raise DeftError(
                f"{source}: {len(divisors)} rotary factors; expected"
                f" {config.head_dim // 2}, half of head_dim"
            )
    if config.head_dim > _MAX_HEAD_DIM:
        raise DeftError(
            f"{source}: head_dim is {config.head_dim}; expected {_MAX_HEAD_DIM} or less"
        )
    with np.errstate(all="ignore"):
        frequencies = config.inverse_frequencies()
    if not np.isfinite(frequencies).all():
        raise DeftError(
            f"{source}: rotary frequencies overflow; expected a base and factors"
            f" of ordinary size, got base {config.rope_theta:g}"
        )


_MAX_HEAD_DIM = 1 << 16
"""Widest head that is tried; a damaged file may ask for any."""
