"""`deft-jax info`: what the machine has and what a model needs of it."""

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from deft_jax.attention.backend import device_backend
from deft_jax.cli.device import default_dtype
from deft_jax.engine.device_memory import free_bytes
from deft_jax.models.checkpoints.checkpoint import open_checkpoint
from deft_jax.results.terminal_text import one_line

_REASONS = {
    "xla": "compiled by XLA for any device",
    "reference": "the float32 oracle for any device",
    "mosaic_gpu": "Pallas kernels for this GPU",
}
_MIB = 1 << 20


def info(options: argparse.Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        DeftError: the model cannot be found or read.
    """
    facts = collect_facts(options.model, options.dtype, options.implementation)
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    rows = list(_rows(facts))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {one_line(value)}")
    return 0


def collect_facts(
    model: str, dtype: str | None = None, implementation: str | None = None
) -> dict[str, Any]:
    """Return what `info` shows, ready for JSON; the weights are not loaded.

    Args:
        model: as for `generate`.
        dtype: of weights and KV, `None` for the device's default.
        implementation: of the attention, `None` for the device's default.

    Raises:
        DeftError: the model cannot be found or read.
    """
    config = open_checkpoint(model).config
    device, dtype = jax.devices()[0], dtype or default_dtype()
    weight_bytes = config.num_parameters * np.dtype(dtype).itemsize
    token_bytes = config.kv_bytes_per_token(dtype)
    free = free_bytes(device)
    chosen = implementation or device_backend(None).implementation
    return {
        "version": version("deft-jax"),
        "jax_version": jax.__version__,
        "python_version": platform.python_version(),
        "devices": [
            f"{item.platform}:{item.id} {item.device_kind}" for item in jax.devices()
        ],
        "implementation": chosen,
        "implementation_reason": "asked for" if implementation else _REASONS[chosen],
        "model": model,
        "parameters": config.num_parameters,
        "dtype": dtype,
        "weight_bytes": weight_bytes,
        "context_length": config.context_length,
        "kv_bytes_per_token": token_bytes,
        "free_bytes": free,
        "kv_capacity_tokens": free and max(free - weight_bytes, 0) // token_bytes,
    }


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each line of the report."""
    jax_version, python_version = facts["jax_version"], facts["python_version"]
    yield "deft-jax", f"{facts['version']}, JAX {jax_version}, Python {python_version}"
    yield "devices", ", ".join(facts["devices"])
    yield "attention", f"{facts['implementation']} ({facts['implementation_reason']})"
    yield "model", facts["model"]
    yield "parameters", f"{facts['parameters']:,}"
    yield "weights", f"{facts['weight_bytes'] / _MIB:,.0f} MiB in {facts['dtype']}"
    yield "context", f"{facts['context_length']:,} tokens"
    yield "KV cache", f"{facts['kv_bytes_per_token']:,} bytes per token"
    if facts["free_bytes"] is None:
        yield "free memory", "not reported by the device"
        return
    yield "free memory", f"{facts['free_bytes'] / _MIB:,.0f} MiB"
    yield "KV capacity", f"{facts['kv_capacity_tokens']:,} tokens beside the weights"
