"""The tables of tuned sizes: which one wins, and what a broken one says."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from deft_jax.attention import hopper as mosaic
from deft_jax.attention import tuned_sizes as tuning
from deft_jax.attention.spec import Logits
from deft_jax.attention.tuned_sizes import (
    Entry,
    Key,
    Table,
    lookup,
    read_table,
    write_table,
)
from deft_jax.errors import DeftError
from deft_jax.pallas_kernels.kernel_spec import SHARED_BYTES, KernelConfig
from tests.support.shapes import HEADS, Heads

KIND = "NVIDIA H100/Test"
KEY = Key(head_dim=128, dtype="bfloat16", windowed=False, rows=64, page_size=64)
TUNED = KernelConfig(unit_tokens=32, block_tokens=64, stages=3)
ENTRIES = {KEY: Entry(TUNED, us=12.5)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder."""
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._read_once.cache_clear()
    return tmp_path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return a default device of the tables' kind."""
    device = SimpleNamespace(platform="gpu", device_kind=KIND)
    monkeypatch.setattr(jax, "devices", lambda: [device])


def spec(num_queries=16, heads=(32, 8), head_dim=128, window=None, config=None):
    # Shapes lie on no device, so that the default one counts.
    q = jax.ShapeDtypeStruct((num_queries, heads[0], head_dim), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, heads[1], 64, head_dim), jnp.bfloat16)
    return mosaic.make_spec(q, k, Logits(1.0, window, None), config=config)


def test_rows_are_powers_of_two_within_limits():
    rows = [1, 64, 65, 128, 129, 8192, 8193, 10**6]
    buckets = [64, 64, 128, 128, 256, 8192, 8192, 8192]
    assert [tuning.rows_bucket(n) for n in rows] == buckets


def test_a_table_survives_its_file(home: Path):
    table = Table(KIND, jax="0.11.2", date="2026-01-31", entries=ENTRIES)
    write_table(home / "folder" / "table.json", table)
    assert read_table(home / "folder" / "table.json") == table
    assert [path.name for path in (home / "folder").iterdir()] == ["table.json"]


def test_every_packaged_table_can_be_read():
    tables = [read_table(path) for path in tuning._packaged_paths()]
    assert "NVIDIA H100 80GB HBM3" in {table.device_kind for table in tables if table}
    for table in tables:
        assert table is not None
        assert bool(table.entries) == (table.date is not None)


def test_nothing_is_tuned_without_a_table():
    assert lookup(KIND, KEY) is None


def test_the_users_table_is_found_by_the_kind_of_device():
    write_table(tuning.default_path(KIND), Table(KIND, entries=ENTRIES))
    assert lookup(KIND, KEY) == TUNED
    assert lookup("another", KEY) is None


def test_the_variable_names_another_table(home: Path, monkeypatch: pytest.MonkeyPatch):
    write_table(tuning.default_path(KIND), Table(KIND, entries=ENTRIES))
    other = KernelConfig(stages=5)
    write_table(home / "mine.json", Table(KIND, entries={KEY: Entry(other, us=1.0)}))
    monkeypatch.setenv(tuning.VARIABLE, str(home / "mine.json"))
    assert lookup(KIND, KEY) == other
    assert lookup("another", KEY) is None
    monkeypatch.setenv(tuning.VARIABLE, "")
    assert lookup(KIND, KEY) is None


def test_the_users_table_wins_over_the_packaged_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    packaged = Key(head_dim=64, dtype="bfloat16", windowed=True, rows=64, page_size=16)
    entry = Entry(KernelConfig(stages=2), us=1.0)
    write_table(home / "p.json", Table(KIND, entries={KEY: entry, packaged: entry}))
    monkeypatch.setattr(tuning, "_packaged_paths", lambda: [home / "p.json"])
    write_table(tuning.default_path(KIND), Table(KIND, entries=ENTRIES))
    assert lookup(KIND, KEY) == TUNED
    assert lookup(KIND, packaged) == entry.config


VALID = {"head_dim": 128, "dtype": "bfloat16", "windowed": False, "rows": 64} | {
    **{"page_size": 64, "unit_tokens": 16, "block_tokens": 64, "stages": 4, "us": 1}
}
HEADER = {"device_kind": KIND, "jax": None, "date": None}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "Expecting property name"),
        ("\x00", "Expecting value"),
        ("[]", "expected an object with entries, got []"),
        (json.dumps(HEADER), "expected entries of type list, got None"),
        (json.dumps({"entries": [7]}), "expected an object with head_dim, got 7"),
        (
            json.dumps({"entries": [VALID | {"stages": True}]}),
            "expected stages of type int, got True",
        ),
        (
            json.dumps({"entries": [VALID | {"unit_tokens": 24}]}),
            "expected unit_tokens of at least 16 that divide page_size",
        ),
        (
            json.dumps({"entries": [VALID | {"block_tokens": 32}]}),
            "expected unit_tokens of at least 16 that divide page_size and"
            " block_tokens, block_tokens of a multiple of 64",
        ),
        (
            json.dumps({"entries": [VALID]}),
            "expected device_kind of type str, got None",
        ),
    ],
)
def test_a_broken_table_is_named_on_one_line(content: str, problem: str):
    path = tuning.default_path(KIND)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DeftError) as raised:
        lookup(KIND, KEY)
    message = str(raised.value)
    assert message.startswith(f"{path}: not a table of tuned sizes: {problem}")
    assert "\n" not in message


def test_a_table_that_the_variable_misnames_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(tuning.VARIABLE, "/nowhere/table.json")
    with pytest.raises(DeftError, match="^/nowhere/table.json: no such file"):
        lookup(KIND, KEY)


@pytest.mark.usefixtures("gpu")
def test_the_kernels_use_what_was_tuned():
    assert spec().config == mosaic.default_config(128, 64, False)
    tuning._read_once.cache_clear()
    write_table(tuning.default_path(KIND), Table(KIND, entries=ENTRIES))
    assert spec().config == TUNED
    assert spec(num_queries=17).config == mosaic.default_config(128, 68, False)
    assert spec(window=8).config == mosaic.default_config(128, 64, True)
    explicit = KernelConfig(stages=2)
    assert spec(config=explicit).config == explicit


@pytest.mark.usefixtures("gpu")
def test_tuned_sizes_that_do_not_fit_are_left():
    """The queries of 63 heads take nearly twice the room of those of 64."""
    key = Key(head_dim=128, dtype="bfloat16", windowed=False, rows=512, page_size=64)
    deep = Entry(KernelConfig(stages=4), us=1.0)
    write_table(tuning.default_path(KIND), Table(KIND, entries={key: deep}))
    assert spec(num_queries=8, heads=(64, 1)).config == deep.config
    assert spec(num_queries=8, heads=(63, 1)).config == KernelConfig(stages=2)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("num_queries", [1, 16, 64, 1024])
def test_default_sizes_fit_real_models(heads: Heads, window, num_queries: int):
    made = spec(num_queries, (heads.num_q, heads.num_kv), heads.head_dim, window)
    default = mosaic.default_config(
        heads.head_dim, num_queries * heads.group, window is not None
    )
    assert made.config == default
    assert made.shared_bytes <= SHARED_BYTES


def test_shared_memory_is_what_pallas_asks_for():
    """The numbers are those of JAX 0.11.2's own refusal."""
    wide = spec(64, config=KernelConfig(32, 64, 5), window=100)
    assert wide.shared_bytes == 238_848
    assert spec(16, config=KernelConfig(16, 64, 4)).shared_bytes == 171_216
    deep = spec(8, (8, 1), 256, config=KernelConfig(16, 64, 2))
    assert deep.shared_bytes == 201_840


def test_the_cpu_uses_the_default():
    assert spec().config == mosaic.default_config(128, 64, False)
