"""From the name of a model to its network and tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.errors import DeftError

from .checkpoints.checkpoint import Checkpoint, check_shapes, open_checkpoint
from .checkpoints.weights import Progress, weight_shapes
from .families.llama import Llama
from .tokenizers.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")
"""What weights, activations and KV may be stored in."""


def load_model(
    source: str | Path,
    *,
    dtype: jnp.dtype | str = jnp.float32,
    progress: Progress | None = None,
) -> tuple[Llama, Tokenizer]:
    """Load a checkpoint, a few memory-mapped tensors at a time.

    Args:
        source: what `open_checkpoint` accepts: a known name, a GGUF file, a folder of
            safetensors, or a Hugging Face id.
        dtype: of the weights on the device, one of `DTYPES`.
        progress: called with the weights placed so far and their number.

    Raises:
        DeftError: there is no such checkpoint, it is damaged, it is no supported Llama,
            or the dtype is none of `DTYPES`.
    """
    opened = open_model(source, dtype=dtype)
    return opened.load(progress), opened.tokenizer


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A checkpoint whose weights are still to be loaded.

    Attributes:
        checkpoint: where the weights come from.
        tokenizer: the model's tokenizer.
        dtype: dtype of the weights on the device.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    dtype: jnp.dtype

    def outline(self) -> Llama:
        """Return the network with `jax.ShapeDtypeStruct` for weights.

        An engine can compile for it while the weights are loaded; see
        `Engine.compile_ahead`.
        """
        shapes = weight_shapes(self.checkpoint.config)
        weights: dict[str, Any] = {
            name: jax.ShapeDtypeStruct(shape, self.dtype)
            for name, shape in shapes.items()
        }
        return Llama(self.checkpoint.config, weights)

    def load(self, progress: Progress | None = None) -> Llama:
        """Load the weights, a few memory-mapped tensors at a time.

        Args:
            progress: called with the weights placed so far and their number.

        Raises:
            DeftError: the checkpoint is damaged.
        """
        config, read = self.checkpoint.config, self.checkpoint.read
        return Llama.from_checkpoint(config, read, self.dtype, progress)


def open_model(
    source: str | Path, *, dtype: jnp.dtype | str = jnp.float32
) -> OpenedModel:
    """Open a checkpoint and read its tokenizer, but no weights.

    Args:
        source: what `load_model` takes.
        dtype: dtype of the weights on the device, one of `DTYPES`.

    Raises:
        DeftError: there is no such checkpoint, it is damaged, it is no supported Llama,
            or the dtype is none of `DTYPES`.
    """
    dtype = _checked_dtype(dtype)
    checkpoint = open_checkpoint(source)
    check_shapes(checkpoint.config, checkpoint)
    if checkpoint.metadata:
        tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
    else:
        tokenizer = Tokenizer.from_folder(checkpoint.source)
    return OpenedModel(checkpoint, tokenizer, dtype)


def _checked_dtype(dtype: jnp.dtype | str) -> jnp.dtype:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise DeftError(f"expected a dtype out of {', '.join(DTYPES)}; got {name!r}")
    return jnp.dtype(name)
