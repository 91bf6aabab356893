"""Shapes of published Llamas, and one for tests."""

from dataclasses import replace

from .config import LlamaConfig
from .rope import Llama3Scaling

_LLAMA3_1_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    mlp_size=14_336,
    num_layers=32,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    rope_scaling=Llama3Scaling(factor=8.0),
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
        rope_scaling=Llama3Scaling(factor=32.0),
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
