"""From the name of a model to its network and tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.errors import DeftError

from .checkpoints.checkpoint import Checkpoint, check_shapes, open_checkpoint
from .checkpoints.weights import Progress, weight_shapes
from .config.config import LlamaConfig
from .families.llama import Llama
from .tokenizers.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")
"""Types that weights, activations and KV may be stored in."""


def load_model(
    source: str | Path,
    *,
    dtype: jnp.dtype | str = jnp.float32,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> tuple[Llama, Tokenizer]:
    """Load a checkpoint, a few memory-mapped tensors at a time.

    Weights that hold NaN or infinity are named in one warning.

    Args:
        source: what `open_checkpoint` accepts: a known name, a GGUF file or a part of
            a set of them, a folder of safetensors, or a Hugging Face id.
        dtype: type of weights, activations and KV on the device, one of `DTYPES`. On a
            CPU bfloat16 takes half the memory of float32 and is not faster for a single
            branch; float16 is slower still, since every product converts its weights.
        context_length: most positions of a sequence; `None` takes the checkpoint's. A
            checkpoint with LongRoPE takes its short factors if its original context
            is enough for that, as for `--max-context` of other engines.
        progress: called with the weights placed so far and their number.

    Returns:
        The network and its tokenizer.

    Raises:
        DeftError: there is no such checkpoint, it is damaged, it is no supported Llama,
            the dtype is none of `DTYPES`, or the context is longer than the
            checkpoint's.
    """
    opened = open_model(source, dtype=dtype, context_length=context_length)
    return opened.load(progress), opened.tokenizer


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A checkpoint whose weights are still to be loaded.

    Attributes:
        checkpoint: where the weights come from.
        config: shape of the network, its context as it was asked for.
        tokenizer: the model's tokenizer.
        dtype: type of the weights on the device.
    """

    checkpoint: Checkpoint
    config: LlamaConfig
    tokenizer: Tokenizer
    dtype: jnp.dtype

    def outline(self) -> Llama:
        """Return the network with `jax.ShapeDtypeStruct` in place of weights.

        An engine can compile for it while the weights are loaded; see
        `Engine.compile_ahead`.
        """
        weights: dict[str, Any] = {
            name: jax.ShapeDtypeStruct(shape, self.dtype)
            for name, shape in weight_shapes(self.config).items()
        }
        return Llama(self.config, weights)

    def with_context_length(self, context_length: int) -> "OpenedModel":
        """Return the checkpoint for sequences of fewer positions.

        Args:
            context_length: most positions of a sequence; a checkpoint with LongRoPE
                takes its short factors if its original context is enough for that.

        Raises:
            DeftError: the length is not between 1 and the checkpoint's.
        """
        config = self.config.with_context_length(context_length)
        return dataclasses.replace(self, config=config)

    def load(self, progress: Progress | None = None) -> Llama:
        """Load the weights, a few memory-mapped tensors at a time.

        Args:
            progress: called with the weights placed so far and their number.

        Raises:
            DeftError: the checkpoint is damaged.
        """
        read = self.checkpoint.matrix
        return Llama.from_checkpoint(self.config, read, self.dtype, progress)


def open_model(
    source: str | Path,
    *,
    dtype: jnp.dtype | str = jnp.float32,
    context_length: int | None = None,
) -> OpenedModel:
    """Open a checkpoint and read its tokenizer, but no weights.

    The arguments and errors are those of `load_model`.
    """
    dtype = _checked_dtype(dtype)
    checkpoint = open_checkpoint(source)
    check_shapes(checkpoint.config, checkpoint)
    if checkpoint.metadata:
        tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
    else:
        tokenizer = Tokenizer.from_folder(checkpoint.source)
    opened = OpenedModel(checkpoint, checkpoint.config, tokenizer, dtype)
    if context_length is not None:
        opened = opened.with_context_length(context_length)
    return opened


def _checked_dtype(dtype: jnp.dtype | str) -> jnp.dtype:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise DeftError(f"expected a dtype out of {', '.join(DTYPES)}; got {name!r}")
    return jnp.dtype(name)
