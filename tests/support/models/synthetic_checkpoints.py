"""Small Llama checkpoints with random weights, written as other tools write them."""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

from deft_jax.models.config.config import LlamaConfig

F32 = gguf.GGMLQuantizationType.F32


def random_weights(config: LlamaConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return float32 weights under their Hugging Face names."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in config.expected_tensors().items()
    }


def permuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Return q or k rows in GGUF's order; `LlamaModel.permute` of llama.cpp."""
    size = rows.shape[0] // num_heads // 2
    halves = rows.reshape(num_heads, 2, size, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def gguf_writer(
    path: Path, config: LlamaConfig, arch: str = "llama", split_max_tensors: int = 0
):
    """Return a writer that has the metadata of `config`."""
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.num_q_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_token_list([f"token{i}" for i in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    return writer


def add_weights(
    writer: gguf.GGUFWriter,
    config: LlamaConfig,
    weights: Mapping[str, np.ndarray],
    matrix_type: gguf.GGMLQuantizationType = F32,
) -> None:
    """Add weights as llama.cpp's converter does: renamed, q and k permuted."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    for name, weight in weights.items():
        if "q_proj" in name:
            weight = permuted(weight, config.num_q_heads)
        elif "k_proj" in name:
            weight = permuted(weight, config.num_kv_heads)
        kind = F32 if weight.ndim == 1 else matrix_type
        data = gguf.quants.quantize(np.ascontiguousarray(weight), kind)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(gguf_name or name, data, raw_dtype=kind)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path: Path, config: LlamaConfig, weights=None, matrix_type=F32) -> Path:
    """Write a whole GGUF checkpoint of `config`."""
    writer = gguf_writer(path, config)
    add_weights(writer, config, weights or random_weights(config), matrix_type)
    finish(writer)
    return path


def hf_config(config: LlamaConfig) -> dict[str, object]:
    """Return the content of a config.json for `config`, without its RoPE scaling."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_q_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_eps,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": "self_attn.q_proj" in config.biases,
        "mlp_bias": "mlp.up_proj" in config.biases,
    }


def write_folder(
    folder: Path,
    config: LlamaConfig,
    weights: Mapping[str, np.ndarray] | None = None,
    num_shards: int = 1,
) -> Path:
    """Write config.json and safetensors, with an index if there are many shards."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    weights = weights or random_weights(config)
    if num_shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(weights.items())[shard::num_shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
