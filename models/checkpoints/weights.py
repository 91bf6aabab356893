"""Checkpoint tensors to the matrices of the network, in place on the device."""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from ..config.config import LlamaConfig
from .gguf_blocks import BLOCK_VALUES, BlockMatrix

Read = Callable[[str], np.ndarray | BlockMatrix]
"""Gives a checkpoint tensor by its Hugging Face name; matrices are [output, input]."""

Progress = Callable[[int, int], None]
"""Function that is told how many weights are placed so far and how many there are."""

LAYER_SOURCES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Checkpoint tensors behind each weight of a layer, side by side in this order."""

LAYER_BIASES = {f"{name}_bias": sources for name, sources in LAYER_SOURCES.items()}
"""Checkpoint tensors behind each bias of a layer, for those that a config has."""

LAYER_NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
"""Norms whose weights scale the rows of a weight of a layer."""

READERS = 4
"""Threads that read; each holds one tensor of the checkpoint at a time."""

_BLOCK_ROWS = 128
"""Rows transposed at a time: one cache line of each fits the L1 cache."""

_ALIGNMENT = 64
"""Bytes; JAX on the CPU takes over an aligned NumPy buffer without copying it."""


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the network under its own name.

    Matrices are [input, output], but for an embedding that is not tied: [V, E]. A layer
    has a bias where one of the projections side by side has one.
    """
    E, F, D = config.hidden_size, config.mlp_size, config.head_dim
    H, K = config.num_q_heads, config.num_kv_heads
    layer: dict[str, tuple[int, ...]] = {
        "qkv": (E, (H + 2 * K) * D),
        "out": (H * D, E),
        "gate_up": (E, 2 * F),
        "down": (F, E),
    }
    for name, sources in LAYER_BIASES.items():
        if config.biases.intersection(sources):
            layer[name] = layer[name.removesuffix("_bias")][1:]
    shapes = {} if config.tie_embeddings else {"embedding": (config.vocab_size, E)}
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | {"norm": (E,), "head": (E, config.vocab_size)}


def read_weights(
    config: LlamaConfig, read: Read, dtype: np.dtype, progress: Progress | None = None
) -> dict[str, jax.Array]:
    """Return the weights of the network by the names of `weight_shapes`.

    Args:
        config: shape of the checkpoint.
        read: gives a tensor by its Hugging Face name; called from `READERS` threads.
        dtype: type of the weights: float32, bfloat16 or float16.
        progress: called from this thread with the weights placed so far and their
            number.

    Raises:
        DeftError: a tensor cannot be read.
    """
    shapes = weight_shapes(config)

    def place(name: str) -> tuple[jax.Array, str | None]:
        weight = _aligned_empty(shapes[name], dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            bad = _fill(weight, config, name, read)
        return jax.device_put(weight, may_alias=True).block_until_ready(), bad

    # The largest first: while it is read there is the least besides it.
    names = sorted(shapes, key=lambda name: math.prod(shapes[name]), reverse=True)
    weights, bad_tensors = {}, []
    with ThreadPoolExecutor(READERS) as pool:
        for name, (weight, bad) in zip(names, pool.map(place, names), strict=True):
            weights[name] = weight
            bad_tensors += [] if bad is None else [bad]
            if progress is not None:
                progress(len(weights), len(names))
    _warn_of(bad_tensors, dtype)
    return weights


def _warn_of(bad_tensors: list[str], dtype: np.dtype) -> None:
    if bad_tensors:
        warnings.warn(
            f"tensor {min(bad_tensors)} holds NaN or infinity in {dtype.name};"
            f" {len(bad_tensors)} weights of the model do, and its texts will be wrong",
            stacklevel=3,
        )


def _fill(weight: np.ndarray, config: LlamaConfig, name: str, read: Read) -> str | None:
    """Write checkpoint tensors into a weight; return one that is not finite."""
    norm, bad, scale = _norm(name), None, None
    if norm is not None:
        scale = _rows(read(norm), 0, config.hidden_size).astype(np.float32)
        bad = None if _is_finite(scale) else norm
    sizes, start = config.layer_shapes(), 0
    for source, is_stored in _sources(config, name):
        if not is_stored:
            size = sizes[source.split(".", 3)[3].removesuffix(".bias")][0]
            weight[start : start + size] = 0
            start += size
            continue
        # A vector and an embedding lie as in the checkpoint.
        part = weight if weight.ndim == 1 or name == "embedding" else weight.T
        # No name here keeps a tensor alive while the next one is read.
        start, finite = _put(part, start, read(source), scale)
        bad = bad or (None if finite else source)
    return bad


def _put(
    part: np.ndarray,
    start: int,
    tensor: np.ndarray | BlockMatrix,
    scale: np.ndarray | None,
) -> tuple[int, bool]:
    """Write a tensor, scaled by float32 `scale` [E], to rows of a weight.

    Returns:
        The next free row, and whether all values are finite.
    """
    # Values of a block are finite together, but for a narrow type that overflows.
    are_blocks = isinstance(tensor, BlockMatrix) and part.dtype != np.float16
    finite, every = True, BLOCK_VALUES if are_blocks else 1
    for first in range(0, len(tensor), _BLOCK_ROWS):
        rows = _rows(tensor, first, first + _BLOCK_ROWS)
        if scale is not None:
            rows = rows.astype(np.float32, copy=False) * scale
        rows = rows.astype(part.dtype, copy=False)
        finite = finite and _is_finite(rows[..., ::every])
        part[start : start + len(rows)] = rows
        start += len(rows)
    return start, finite


def _rows(tensor: np.ndarray | BlockMatrix, first: int, last: int) -> np.ndarray:
    """Return rows of a tensor; those of blocks are columns in memory."""
    if isinstance(tensor, BlockMatrix):
        return tensor.transposed(first, last).T
    return tensor[first:last]


def _is_finite(values: np.ndarray) -> bool:
    """Return whether no value is NaN or infinite.

    The bits of a float that is not finite are those of infinity or more, as an unsigned
    number where the sign is set and as a signed one where it is not: two reductions
    without temporaries, for any width.
    """
    kind = values.dtype.itemsize
    infinity = np.array([np.inf, -np.inf], values.dtype)
    most = values.view(f"i{kind}").max(initial=0)
    least = values.view(f"u{kind}").max(initial=0)
    signed, unsigned = infinity.view(f"i{kind}")[0], infinity.view(f"u{kind}")[1]
    return bool(most < signed and least < unsigned)


def _sources(config: LlamaConfig, name: str) -> list[tuple[str, bool]]:
    """List the Hugging Face tensors that make up a weight, and whether they exist.

    A bias that the checkpoint lacks beside one that it has is 0.
    """
    if name == "norm":
        return [("model.norm.weight", True)]
    if name == "embedding" or (name == "head" and config.tie_embeddings):
        return [("model.embed_tokens.weight", True)]
    if name == "head":
        return [("lm_head.weight", True)]
    layers, index, weight = name.split(".")
    prefix = f"model.{layers}.{index}"
    if weight in LAYER_BIASES:
        return [
            (f"{prefix}.{source}.bias", source in config.biases)
            for source in LAYER_BIASES[weight]
        ]
    return [(f"{prefix}.{source}.weight", True) for source in LAYER_SOURCES[weight]]


def _norm(name: str) -> str | None:
    """Return the Hugging Face name of the norm that is multiplied into a weight."""
    if name.count(".") < 2:
        return None
    layers, index, weight = name.split(".")
    norm = LAYER_NORMS.get(weight)
    return norm and f"model.{layers}.{index}.{norm}.weight"


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)
