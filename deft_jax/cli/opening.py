"""Opening the model that a command's options name."""

import argparse
from typing import Any

from deft_jax.cli.view import write_progress
from deft_jax.errors import CapacityError


def open_chosen(options: argparse.Namespace) -> Any:
    """Open the model and read its tokenizer, but no weights.

    Returns:
        An `OpenedModel` of `deft_jax.models.load`; importing its class imports JAX.
    """
    from deft_jax.cli.device import (
        check_arrays,
        check_implementation,
        default_dtype,
        start_backend,
    )
    from deft_jax.engine.compilation_cache import enable_compilation_cache

    backend = start_backend()
    check_implementation(options.implementation)
    enable_compilation_cache()
    dtype = options.dtype or default_dtype()
    if backend == "cpu" and dtype != "float32":
        write_progress(
            f"{dtype} on a CPU is slower than float32 for few branches, and takes more"
            " memory at its peak; --dtype float32 is the default here"
        )
    from deft_jax.capacity import DEFAULT_PAGE_SIZE
    from deft_jax.models.load import open_model

    opened = open_model(options.model, dtype=dtype)
    page_size = options.page_size or DEFAULT_PAGE_SIZE
    check_arrays(options.implementation, opened.config, opened.dtype, page_size)
    return opened


def limit_context(opened: Any, max_context: int | None) -> Any:
    """Return the opened model for sequences of so many tokens; None keeps its own.

    Raises:
        CapacityError: the model's context is shorter.
    """
    if max_context is None:
        return opened
    longest = opened.config.context_length
    if max_context > longest:
        raise CapacityError(
            f"--max-context {max_context} is above the model's context of {longest}"
            f" tokens; give at most {longest}"
        )
    return opened.with_context_length(max_context)
