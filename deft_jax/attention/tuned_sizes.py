"""Tuned sizes of the kernels: tables that were measured on one kind of device each.

The packaged tables lie in `pallas_kernels/tuned`. A table of the user's own wins over
them: the file that `DEFT_JAX_TUNED` names or, where that is not set, the one of the
device kind in the user's cache folder, which is where `deft-jax tune` writes. A table
counts only on the kind of device that it names.
"""

import dataclasses
import functools
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deft_jax.errors import DeftError
from deft_jax.pallas_kernels.kernel_spec import TILE_ROWS, KernelConfig, KernelSpec

VARIABLE = "DEFT_JAX_TUNED"
"""Environment variable with the user's table; empty for none."""

LEAST_ROWS = 64
MOST_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class Key:
    """What tuned sizes depend on.

    Attributes:
        head_dim: `D`.
        dtype: name of the dtype of q, k, v and out.
        windowed: whether queries see a window of their path only.
        rows: queries times the query heads that share a KV head, as a bucket of
            `rows_bucket`.
        page_size: `P`.
    """

    head_dim: int
    dtype: str
    windowed: bool
    rows: int
    page_size: int

    @classmethod
    def of(cls, spec: KernelSpec) -> "Key":
        """Return the key of a kernel, whatever its config."""
        return cls(
            head_dim=spec.head_dim,
            dtype=spec.dtype,
            windowed=spec.window is not None,
            rows=rows_bucket(spec.num_queries * spec.group),
            page_size=spec.page_size,
        )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A config that won, and how long it took: the mean of the trees it ran on."""

    config: KernelConfig
    us: float


@dataclasses.dataclass(frozen=True)
class Table:
    """Tuned sizes for one kind of device.

    Attributes:
        device_kind: name that `jax.Device` has for the kind of device.
        jax: version of JAX that measured last, None if nothing was measured.
        date: day when it was measured last, YYYY-MM-DD, or None.
        entries: the sizes that won, by what they depend on.
    """

    device_kind: str
    jax: str | None = None
    date: str | None = None
    entries: Mapping[Key, Entry] = dataclasses.field(default_factory=dict)


def rows_bucket(rows: int) -> int:
    """Return `rows` rounded up to a power of two between 64 and 8192."""
    return min(max(1 << (rows - 1).bit_length(), LEAST_ROWS), MOST_ROWS)


def lookup(device_kind: str, key: Key) -> KernelConfig | None:
    """Return the tuned sizes for a kernel, None where nothing was measured.

    Raises:
        DeftError: a table cannot be read; the message names the file.
    """
    for path in (user_path(device_kind), *_packaged_paths()):
        table = _read_once(path) if path is not None else None
        if table is not None and table.device_kind == device_kind:
            if entry := table.entries.get(key):
                return entry.config
    return None


def user_path(device_kind: str) -> Path | None:
    """Return the file of the user's own table, None if there is none.

    Raises:
        DeftError: `DEFT_JAX_TUNED` names a file that does not exist.
    """
    chosen = os.environ.get(VARIABLE)
    path = default_path(device_kind)
    if chosen is not None:
        path = Path(os.path.expanduser(chosen))
    # Unlike `Path.is_file` this is false for a home that may not be entered.
    if os.path.isfile(path):
        return path
    if chosen:
        raise DeftError(f"{path}: no such file, which {VARIABLE} names")
    return None


def default_path(device_kind: str) -> Path:
    """Return the path where `deft-jax tune` writes the table of a kind of device."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = device_kind.replace("/", "-")
    return base / "deft-jax" / "tuned" / f"{name}.json"


def read_table(path: Path) -> Table | None:
    """Return the table of a file, None if there is no such file.

    Raises:
        DeftError: it is no table; the message names the file.
    """
    try:
        raw = json.loads(path.read_text())
        entries = [_parse_entry(item) for item in _field(raw, "entries", list)]
        return Table(
            device_kind=_field(raw, "device_kind", str),
            jax=_field(raw, "jax", str | None),
            date=_field(raw, "date", str | None),
            entries=dict(entries),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeftError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DeftError(f"{path}: not a table of tuned sizes: {error}") from None


def write_table(path: Path, table: Table) -> None:
    """Write a table in one step: the file is never seen half-written.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {**dataclasses.asdict(key), **dataclasses.asdict(entry.config), "us": entry.us}
        for key, entry in table.entries.items()
    ]
    header = {name: getattr(table, name) for name in ("device_kind", "jax", "date")}
    text = json.dumps({**header, "entries": entries}, indent=2)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def _packaged_paths() -> list[Path]:
    folder = importlib.resources.files("deft_jax.pallas_kernels") / "tuned"
    return sorted(Path(str(folder)).glob("*.json"))


@functools.cache
def _read_once(path: Path) -> Table | None:
    """Read a table the first time; every layer of a model asks while it is traced."""
    return read_table(path)


def _parse_entry(raw: Any) -> tuple[Key, Entry]:
    key = Key(**_fields(raw, Key))
    config = KernelConfig(**_fields(raw, KernelConfig))
    unit, block = config.unit_tokens, config.block_tokens
    short = unit < 16 or config.stages < 1
    if short or key.page_size % unit or block % unit or block % TILE_ROWS:
        raise ValueError(
            "expected unit_tokens of at least 16 that divide page_size and"
            f" block_tokens, block_tokens of a multiple of {TILE_ROWS}, and at least 1"
            f" stage, got {raw}"
        )
    return key, Entry(config, float(_field(raw, "us", float | int)))


def _fields(raw: Any, kind: type) -> dict[str, Any]:
    return {f.name: _field(raw, f.name, f.type) for f in dataclasses.fields(kind)}


def _field(raw: Any, name: str, kind: Any) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object with {name}, got {raw!r}")
    value = raw.get(name)
    # True is an int, but no number of tokens.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = getattr(kind, "__name__", kind)
        raise ValueError(f"expected {name} of type {expected}, got {value!r}")
    return value
