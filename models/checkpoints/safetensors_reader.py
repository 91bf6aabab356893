"""Llama weights in a Hugging Face folder of safetensors files."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
from safetensors import SafetensorError, safe_open

from deft_jax.errors import DeftError

from ..config.config import LlamaConfig, checked_token_ids
from ..config.fields import Fields, read_json, reason, shown

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")


class SafetensorsCheckpoint:
    """A folder with config.json and one or several safetensors files, memory-mapped.

    Attributes:
        source: path of the folder, which holds the tokenizer's files too.
        metadata: empty; GGUF checkpoints have some.
        config: content of config.json, with the end-of-text ids of
            generation_config.json if that has any.
    """

    source: Path
    metadata: Mapping[str, object]
    config: LlamaConfig

    def __init__(self, source: Path) -> None:
        """Open the files of a folder.

        Raises:
            DeftError: a file is missing or damaged, or the model is not a supported
                Llama.
        """
        self.source = source
        self.metadata = {}
        self.config = _read_config(source)
        self._files = dict(_open_files(source))

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors, sorted within each file."""
        return tuple(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it.

        Raises:
            DeftError: there is no tensor of that name.
        """
        return tuple(self._file(name).get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in the dtype it is stored in: float32, float16 or bfloat16.

        Raises:
            DeftError: there is no tensor of that name, or it has another dtype.
        """
        file = self._file(name)
        dtype = file.get_slice(name).get_dtype()
        if dtype not in _DTYPES:
            raise DeftError(
                f"{self.source}: tensor {shown(name)} has type {dtype};"
                f" supported: {', '.join(_DTYPES)}"
            )
        return file.get_tensor(name)

    def matrix(self, name: str) -> np.ndarray:
        """Return a tensor, as `read` does."""
        return self.read(name)

    def _file(self, name: str) -> safe_open:
        if name not in self._files:
            raise DeftError(f"{self.source}: no tensor {shown(name)}")
        return self._files[name]


def _read_config(folder: Path) -> LlamaConfig:
    path = folder / "config.json"
    config = LlamaConfig.from_hf(read_json(path), source=str(path))
    path = folder / "generation_config.json"
    if not path.exists():
        return config
    fields = Fields(values=read_json(path), source=str(path))
    ends = checked_token_ids(
        fields.token_ids("eos_token_id"), config.vocab_size, str(path)
    )
    return replace(config, eos_token_ids=ends or config.eos_token_ids)


def _open_files(folder: Path) -> Iterator[tuple[str, safe_open]]:
    index, single = folder / _INDEX_FILE, folder / _SINGLE_FILE
    if index.exists():
        yield from _open_shards(index)
    elif single.is_file():
        file = _open(single)
        yield from ((name, file) for name in file.keys())
    else:
        raise DeftError(
            f"{folder}: expected {_SINGLE_FILE} or {_INDEX_FILE}, got neither"
        )


def _open_shards(index: Path) -> Iterator[tuple[str, safe_open]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DeftError(
            f"{index}: expected an object weight_map that names tensors,"
            f" got {shown(weight_map)}"
        )
    shards: dict[str, safe_open] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in shards:
            shards[shard] = _open(_shard_path(index, name, shard))
        if name not in shards[shard].keys():
            raise DeftError(f"{index}: tensor {shown(name)} is not in {shown(shard)}")
        yield name, shards[shard]


def _shard_path(index: Path, tensor: str, shard: object) -> Path:
    """Return the path of a shard, which an index may only name within its folder.

    The file may be a symbolic link that leads elsewhere, as in the hub's cache.
    """
    if (
        not isinstance(shard, str)
        or shard in ("", ".", "..")
        or set("/\\\0") & {*shard}
    ):
        raise DeftError(
            f"{index}: tensor {shown(tensor)} is in {shown(shard)}; expected the name"
            " of a file in the same folder"
        )
    path = index.parent / shard
    if not os.path.exists(path):  # Unlike Path's, it takes names of any length.
        raise DeftError(
            f"{index}: tensor {shown(tensor)} is in {shown(shard)}, which is missing"
        )
    if not path.is_file():
        raise DeftError(
            f"{index}: tensor {shown(tensor)} is in {shown(shard)}, which is not a"
            " regular file"
        )
    return path


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except OSError as error:
        raise DeftError(f"{path}: cannot be read: {reason(error)}") from error
    except SafetensorError as error:
        raise DeftError(f"{path}: damaged: {_damage(path) or reason(error)}") from error


def _damage(path: Path) -> str | None:
    # The file is 8 bytes with the header's length, the header, and the data.
    size = path.stat().st_size
    with path.open("rb") as file:
        expected = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(expected - 8)) if expected <= size else {}
            tensors = [header[name] for name in header if name != "__metadata__"]
            expected += max(
                (tensor["data_offsets"][1] for tensor in tensors), default=0
            )
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
    return f"expected {expected} bytes, got {size}" if expected != size else None
