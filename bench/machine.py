"""What the machine and the software are, for the conditions of a report."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax


def machine_facts() -> dict[str, str | int | None]:
    """Return the device, the processor, its cores and the versions, by name."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "deft_jax": version("deft-jax"),
    }


def cpu_model() -> str:
    """Return the processor's name as the kernel says it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(filter(None, named), platform.processor() or platform.machine())


def usable_cores() -> int | None:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
