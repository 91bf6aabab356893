"""Checkpoint tensors to the matrices of the network, in place on the device."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from ..config.config import LlamaConfig

Read = Callable[[str], np.ndarray]
"""A checkpoint's tensor by its Hugging Face name; matrices are [output, input]."""

Progress = Callable[[int, int], None]
"""Told how many weights are placed so far and how many there are."""

LAYER_SOURCES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Checkpoint tensors behind each weight of a layer, side by side in this order."""

LAYER_NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
"""Norms whose weights are multiplied into the rows of a weight of a layer."""

READERS = 4
"""Threads that read; each holds one tensor of the checkpoint at a time."""

_BLOCK_ROWS = 128
"""Rows transposed at a time: one cache line of each fits the L1 cache."""

_ALIGNMENT = 64
"""Bytes; JAX on the CPU takes over an aligned NumPy buffer without copying it."""


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the network under its own name.

    Matrices are [input, output], but for an embedding that is not tied: [V, E].
    """
    E, F, D = config.hidden_size, config.mlp_size, config.head_dim
    H, K = config.num_q_heads, config.num_kv_heads
    layer = {
        "qkv": (E, (H + 2 * K) * D),
        "out": (H * D, E),
        "gate_up": (E, 2 * F),
        "down": (F, E),
    }
    shapes = {} if config.tie_embeddings else {"embedding": (config.vocab_size, E)}
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | {"norm": (E,), "head": (E, config.vocab_size)}


def read_weights(
    config: LlamaConfig, read: Read, dtype: np.dtype, progress: Progress | None = None
) -> dict[str, jax.Array]:
    """Return the weights of the network by the names of `weight_shapes`.

    config: of the checkpoint.
    read: called from `READERS` threads.
    dtype: of the weights: float32, bfloat16 or float16.
    progress: called from this thread.

    Raises:
        DeftError: whatever `read` raises.
    """
    shapes = weight_shapes(config)

    def place(name: str) -> jax.Array:
        weight = _aligned_empty(shapes[name], dtype)
        sources = _sources(config, name)
        norm = _norm(name)
        rows = None if norm is None else read(norm).astype(np.float32)
        if name == "embedding" or weight.ndim == 1:
            weight[...] = read(sources[0])
        else:
            column = 0
            for source in sources:
                column = _put_transposed(weight, column, read(source), rows)
        return jax.device_put(weight, may_alias=True).block_until_ready()

    # The largest first: while it is read there is the least besides it.
    names = sorted(shapes, key=lambda name: math.prod(shapes[name]), reverse=True)
    weights = {}
    with ThreadPoolExecutor(READERS) as pool:
        for name, weight in zip(names, pool.map(place, names), strict=True):
            weights[name] = weight
            if progress is not None:
                progress(len(weights), len(names))
    return weights


def _sources(config: LlamaConfig, name: str) -> tuple[str, ...]:
    """Hugging Face names of the tensors that make up a weight of the network."""
    if name == "norm":
        return ("model.norm.weight",)
    if name == "embedding" or (name == "head" and config.tie_embeddings):
        return ("model.embed_tokens.weight",)
    if name == "head":
        return ("lm_head.weight",)
    layers, index, weight = name.split(".")
    return tuple(
        f"model.{layers}.{index}.{source}.weight" for source in LAYER_SOURCES[weight]
    )


def _norm(name: str) -> str | None:
    """Hugging Face name of the norm that is multiplied into a weight of the network."""
    if name.count(".") < 2:
        return None
    layers, index, weight = name.split(".")
    norm = LAYER_NORMS.get(weight)
    return norm and f"model.{layers}.{index}.{norm}.weight"


def _put_transposed(
    weight: np.ndarray, column: int, tensor: np.ndarray, scale: np.ndarray | None
) -> int:
    """Write a tensor's rows to columns of a weight; return the next free column.

    `scale` is of the rows of the weight, float32.
    """
    for row in range(0, len(tensor), _BLOCK_ROWS):
        block = tensor[row : row + _BLOCK_ROWS]
        if scale is not None:
            block = block.astype(np.float32, copy=False) * scale
        block = block.astype(weight.dtype, copy=False)
        weight[:, column : column + len(block)] = block.T
        column += len(block)
    return column


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)
