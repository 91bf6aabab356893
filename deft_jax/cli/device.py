"""What the command line asks about the machine."""

import os
from pathlib import Path
from typing import Any

import jax


def default_dtype() -> str:
    """Return the dtype of weights and KV that suits the default device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def free_bytes(device: Any) -> int | None:
    """Return the free memory of a `jax.Device`, `None` where it does not say."""
    statistics = device.memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return _available_host_bytes() if device.platform == "cpu" else None


def _available_host_bytes() -> int | None:
    """Return what the kernel would give, within the limit of a container."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in meminfo.splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _physical_bytes()
    limit = _container_bytes()
    return available if limit is None else min(available, limit)


def _container_bytes() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        return max(limit - int((folder / "memory.current").read_text()), 0)
    except (OSError, ValueError):
        return None


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
