"""From the name of a model to its network and tokenizer."""

from pathlib import Path

import jax.numpy as jnp

from deft_jax.errors import DeftError

from .checkpoints.checkpoint import check_shapes, open_checkpoint
from .checkpoints.weights import Progress
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
    dtype = _checked_dtype(dtype)
    checkpoint = open_checkpoint(source)
    check_shapes(checkpoint.config, checkpoint)
    config = checkpoint.config
    if context_length is not None:
        config = config.with_context_length(context_length)
    if checkpoint.metadata:
        tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
    else:
        tokenizer = Tokenizer.from_folder(checkpoint.source)
    model = Llama.from_checkpoint(config, checkpoint.matrix, dtype, progress)
    return model, tokenizer


def _checked_dtype(dtype: jnp.dtype | str) -> jnp.dtype:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise DeftError(f"expected a dtype out of {', '.join(DTYPES)}; got {name!r}")
    return jnp.dtype(name)
