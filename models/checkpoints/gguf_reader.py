"""Llama weights in a GGUF file, under Hugging Face names and in their row order."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf.gguf_reader import ReaderTensor

from deft_jax.errors import DeftError

from ..config.config import LlamaConfig
from ..config.config_sources import PROJECTIONS
from .gguf_blocks import BlockMatrix
from .gguf_set import open_gguf_set

_ROPE_FACTORS = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
"""Tensors that belong to the config."""

_GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_KINDS = ("weight", "bias")

_CHUNK_VALUES = 1 << 16
"""Values dequantised at a time: temporaries fit the L2 cache, calls are few."""


class GGUFCheckpoint:
    """A model of the llama architecture in GGUF, memory-mapped.

    Attributes:
        source: path of the file, or of one part of a set.
        metadata: GGUF key to number, text or list of them; holds the tokenizer.
        config: shape and constants, read from the metadata.
    """

    source: Path
    metadata: Mapping[str, object]
    config: LlamaConfig

    def __init__(self, source: Path) -> None:
        """Open a file, with the other parts of its set if it is a part of one.

        Raises:
            DeftError: a file is damaged or missing, or the model is not a supported
                Llama.
        """
        parts = open_gguf_set(source)
        self.source = source
        self.metadata = parts.metadata
        self._paths = {_hf_name(name): path for name, path in parts.paths.items()}
        self._tensors = {
            _hf_name(name): tensor
            for name, tensor in parts.tensors.items()
            if name not in _ROPE_FACTORS
        }
        self.config = LlamaConfig.from_gguf(
            parts.metadata,
            tie_embeddings="lm_head.weight" not in self._tensors,
            biases=_biased(self._tensors),
            rope_factors={
                name: _values(parts.paths[name], parts.tensors[name])
                for name in _ROPE_FACTORS
                if name in parts.tensors
            },
            source=str(source),
        )

    def names(self) -> tuple[str, ...]:
        """Return the Hugging Face names of the tensors, in the file's order.

        A tensor that Llama does not have keeps its GGUF name.
        """
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it.

        Raises:
            DeftError: there is no tensor of that name.
        """
        return _shape(self._tensor(name))

    def read(self, name: str) -> np.ndarray:
        """Return a tensor dequantised: float32, matrices [output, input].

        Raises:
            DeftError: there is no tensor of that name, or `gguf` cannot dequantise it.
        """
        tensor = self._tensor(name)
        return _dequantized(self._paths[name], tensor, self._rows(name))

    def matrix(self, name: str) -> np.ndarray | BlockMatrix:
        """Return a tensor that is dequantised later, a few rows at a time, if it can.

        Raises:
            DeftError: there is no tensor of that name, or `gguf` cannot dequantise it.
        """
        blocks = BlockMatrix.wrap(self._rows(name), self._tensor(name).tensor_type)
        return self.read(name) if blocks is None else blocks

    def _rows(self, name: str) -> np.ndarray:
        rows = self._tensor(name).data
        if ".q_proj." in name:
            return _unpermuted(rows, self.config.num_q_heads)
        if ".k_proj." in name:
            return _unpermuted(rows, self.config.num_kv_heads)
        return rows

    def _tensor(self, name: str) -> ReaderTensor:
        if name not in self._tensors:
            raise DeftError(f"{self.source}: no tensor {name}")
        return self._tensors[name]


def _hf_name(gguf_name: str) -> str:
    # blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight
    stem, _, kind = gguf_name.rpartition(".")
    if stem in _GLOBAL_NAMES and kind == "weight":
        return f"{_GLOBAL_NAMES[stem]}.weight"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in _LAYER_NAMES or kind not in _KINDS:
        return gguf_name
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{kind}"


def _biased(names: Iterable[str]) -> frozenset[str]:
    """Return the projections that have a bias in the first layer."""
    biases = set(names) & {f"model.layers.0.{name}.bias" for name in PROJECTIONS}
    prefix, suffix = "model.layers.0.", ".bias"
    return frozenset(x.removeprefix(prefix).removesuffix(suffix) for x in biases)


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    # GGUF lists the fastest-varying dimension first.
    return tuple(int(size) for size in reversed(tensor.shape))


def _unpermuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    # GGUF rotates neighbouring rows of a head, Hugging Face rows half a head apart.
    # For one head of 6 rows:  in: 0 3 1 4 2 5   out: 0 1 2 3 4 5
    # Rows are quantised one by one, so their bytes may be moved.
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _dequantized(path: Path, tensor: ReaderTensor, rows: np.ndarray) -> np.ndarray:
    kind = tensor.tensor_type
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    values = np.empty(tensor.n_elements, np.float32)
    blocks = max(1, _CHUNK_VALUES // block_values)
    try:
        for first in range(0, tensor.n_elements // block_values, blocks):
            chunk = data[first * block_bytes : (first + blocks) * block_bytes]
            start, stop = first * block_values, (first + blocks) * block_values
            values[start:stop] = gguf.quants.dequantize(chunk, kind)
    except NotImplementedError as error:
        raise DeftError(
            f"{path}: tensor {tensor.name} has type {kind.name}; supported: F32, F16,"
            " BF16 and the quantisations that the gguf package can undo"
        ) from error
    return values.reshape(_shape(tensor))


def _values(path: Path, tensor: ReaderTensor) -> tuple[float, ...]:
    return tuple(_dequantized(path, tensor, tensor.data).reshape(-1).tolist())
