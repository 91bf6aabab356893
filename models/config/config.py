"""Shape and constants of a Llama, read from a checkpoint or taken from a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
import numpy.typing as npt

from deft_jax.errors import DeftError

from .config_sources import gguf_arguments, hf_arguments
from .rope import RopeScaling, inverse_frequencies


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything about a Llama except its weights.

    vocab_size: V
    hidden_size: E, width of the residual stream
    mlp_size: F, width inside the SwiGLU
    num_layers: L
    num_q_heads, num_kv_heads: H and K; H is a multiple of K
    head_dim: D, even; H * D need not be E
    rope_theta: base of the rotary frequencies
    rope_scaling: stretch of the rotary frequencies, or `None`
    rope_factors: D / 2 divisors of the rotary frequencies, or `None`
    rms_eps: added to the mean square in RMSNorm
    context_length: most positions the checkpoint was made for
    tie_embeddings: the output head is the embedding table
    bos_token_id: starts a text, or `None`
    eos_token_ids: any of them ends a generation
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
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def group_size(self) -> int:
        """G = H / K, query heads that share one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def num_parameters(self) -> int:
        """Weights in the checkpoint, a tied head counted once."""
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

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight under its Hugging Face name.

        Matrices are [output, input]; the order is that of a forward pass.
        """
        width, mlp = self.hidden_size, self.mlp_size
        q_rows, kv_rows = (
            heads * self.head_dim for heads in (self.num_q_heads, self.num_kv_heads)
        )
        layer = {
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
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, width)
        }
        for index in range(self.num_layers):
            for name, shape in layer.items():
                shapes[f"model.layers.{index}.{name}.weight"] = shape
        shapes["model.norm.weight"] = (width,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, width)
        return shapes

    @classmethod
    def from_hf(
        cls, values: Mapping[str, object], *, source: str = "config.json"
    ) -> "LlamaConfig":
        """Read the content of a Hugging Face config.json.

        values: the decoded JSON object
        source: what an error names

        Raises:
            DeftError: a value is missing, malformed, or asks for a model other than a
                Llama without biases.
        """
        return _checked(source, hf_arguments(values, source))

    @classmethod
    def from_gguf(
        cls,
        values: Mapping[str, object],
        *,
        tie_embeddings: bool,
        rope_factors: tuple[float, ...] | None = None,
        source: str = "GGUF metadata",
    ) -> "LlamaConfig":
        """Read the metadata of a GGUF file of the llama architecture.

        tie_embeddings: the file has no tensor `output.weight`
        rope_factors: content of its tensor `rope_freqs.weight`, [D / 2]
        source: what an error names

        Raises:
            DeftError: a value is missing, malformed or not supported.
        """
        arguments = gguf_arguments(values, source)
        arguments |= dict(tie_embeddings=tie_embeddings, rope_factors=rope_factors)
        return _checked(source, arguments)


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
    factors = config.rope_factors
    if factors is not None and len(factors) != config.head_dim // 2:
        raise DeftError(
            f"{source}: {len(factors)} rotary factors; expected {config.head_dim // 2},"
            " half of head_dim"
        )
    return config


_LLAMA3_1_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    mlp_size=14_336,
    num_layers=32,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(kind="llama3", factor=8.0),
    rms_eps=1e-5,
    context_length=131_072,
    tie_embeddings=False,
    bos_token_id=128_000,
    eos_token_ids=(128_001,),
)

SHAPES: dict[str, LlamaConfig] = {
    "smollm2_135m": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        mlp_size=1536,
        num_layers=30,
        num_q_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_theta=100_000.0,
        rms_eps=1e-5,
        context_length=8192,
        tie_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "llama3_2_1b": replace(
        _LLAMA3_1_8B,
        hidden_size=2048,
        mlp_size=8192,
        num_layers=16,
        head_dim=64,
        rope_scaling=RopeScaling(kind="llama3", factor=32.0),
        tie_embeddings=True,
    ),
    "llama3_8b": _LLAMA3_1_8B,
    "llama3_1_8b": _LLAMA3_1_8B,
    "llama3_1_70b": replace(
        _LLAMA3_1_8B,
        hidden_size=8192,
        mlp_size=28_672,
        num_layers=80,
        num_q_heads=64,
    ),
    "tiny": LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        mlp_size=128,
        num_layers=2,
        num_q_heads=4,
        num_kv_heads=2,
        head_dim=64,
        rope_theta=10_000.0,
        rms_eps=1e-5,
        context_length=1024,
        tie_embeddings=True,
    ),
}
"""Published shapes, and `tiny` for tests; the 3.1 shape also serves as `llama3_8b`."""
