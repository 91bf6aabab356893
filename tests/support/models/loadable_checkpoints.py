"""Small checkpoints that `load_model` takes: tokenizer, scaled RoPE, mild weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deft_jax.models.config.config import LlamaConfig
from tests.support.models.synthetic_checkpoints import (
    add_weights,
    finish,
    gguf_writer,
    write_folder,
)

Weights = dict[str, np.ndarray]


def mild_weights(config: LlamaConfig, seed: int = 0) -> Weights:
    """Draw float32 weights for activations near 1 and uneven attention."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.expected_tensors().items():
        noise = rng.normal(size=shape)
        if name.endswith(".bias"):
            weight = noise / 2
        elif len(shape) == 1:
            weight = 1 + 0.2 * noise
        elif "embed_tokens" in name:
            weight = noise / 4
        else:
            weight = noise / np.sqrt(shape[1])
        if "q_proj" in name or "k_proj" in name:
            weight = 2 * weight
        weights[name] = weight.astype(np.float32)
    return weights


def write_loadable_folder(
    folder: Path,
    config: LlamaConfig,
    weights: Weights,
    *,
    num_shards: int = 1,
    rope_scaling: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder with tokenizer.json, and `rope_scaling` in its config.json."""
    write_folder(folder, config, weights, num_shards)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | {"rope_scaling": rope_scaling}
    path.write_text(json.dumps(values))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: token for token, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_loadable_gguf(
    path: Path,
    config: LlamaConfig,
    weights: Weights,
    *,
    linear_factor: float | None = None,
    rope_factors: np.ndarray | None = None,
    rope_scaling: Mapping[str, str | int | float] | None = None,
    more_tensors: Mapping[str, np.ndarray] | None = None,
    split_max_tensors: int = 0,
) -> Path:
    """Write a GGUF file with a tokenizer, RoPE scaled by numbers or by tensors.

    Args:
        path: file to write; the parts of a set add their numbers to its name.
        config: shape of the model.
        weights: tensors by their Hugging Face names.
        linear_factor: divisor of all positions, or `None`.
        rope_factors: content of `rope_freqs.weight`, or `None`.
        rope_scaling: values below `llama.rope.scaling`.
        more_tensors: tensors by their GGUF names.
        split_max_tensors: most tensors in a part of a set; 0 writes one file.

    Returns:
        The path that was asked for.
    """
    writer = gguf_writer(path, config, split_max_tensors=split_max_tensors)
    writer.add_tokenizer_model("llama")
    writer.add_token_scores([0.0] * config.vocab_size)
    if linear_factor is not None:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", linear_factor)
    for key, value in (rope_scaling or {}).items():
        adders = {str: writer.add_string, int: writer.add_uint32}
        adders.get(type(value), writer.add_float32)(f"llama.rope.scaling.{key}", value)
    add_weights(writer, config, weights)
    for name, tensor in (more_tensors or {}).items():
        writer.add_tensor(name, tensor.astype(np.float32))
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    finish(writer)
    return path
