"""Checkpoints whose values lie: each opens, or fails in one line."""

import json
import os
import struct
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.checkpoint import check_shapes, open_checkpoint
from deft_jax.models.config.config import LlamaConfig
from deft_jax.models.config.shapes import SHAPES
from tests.support.models.synthetic_checkpoints import (
    hf_config,
    write_folder,
    write_gguf,
)

TINY = SHAPES["tiny"]
SHARD = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
NUMBERS = [0, 1, -1, 2**31, 2**40, 10**400, 0.5, -2.5, 1e-300, 1e300, float("nan")]
WRONG = [None, True, False, "", "7", "a\nb", [], [1], {}, {"a": 1}, [[]], *NUMBERS]
ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "attention_factor": 1.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "truncate": True,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "short_factor": [1.0] * 32,
    "long_factor": [1.0] * 32,
    "rope_theta": 1e4,
}
KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")


def opens_or_fails(source: Path) -> None:
    """Assert that a checkpoint opens and fits its config, or fails in one line."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outside the vocabulary")
            checkpoint = open_checkpoint(source)
            check_shapes(checkpoint.config, checkpoint)
    except DeftError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder in three shards."""
    return write_folder(tmp_path_factory.mktemp("lies") / "m", TINY, num_shards=3)


FIELDS = {
    **hf_config(TINY),
    **dict(bos_token_id=1, eos_token_id=2, hidden_act="silu", pretraining_tp=1),
    **dict(sliding_window=None, original_max_position_embeddings=64),
    **dict(rope_scaling=ROPE, rope_parameters=ROPE),
}


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("key", FIELDS)
def test_a_wrong_value_in_a_config_is_refused_or_harmless(key: str, model_type: str):
    for value in WRONG:
        values = {**FIELDS, "model_type": model_type, key: value}
        reads_or_fails(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ROPE)
def test_a_wrong_value_in_rope_scaling_is_refused_or_harmless(key: str, kind: str):
    for value in WRONG:
        rope = {**ROPE, "rope_type": kind, key: value}
        reads_or_fails({**hf_config(TINY), "rope_scaling": rope})


def reads_or_fails(values: dict) -> None:
    """Assert that a config is read and gives frequencies, or fails in one line."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outside the vocabulary")
            LlamaConfig.from_hf(values).inverse_frequencies()
    except DeftError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_wrong_value_in_a_safetensors_header_is_refused_or_harmless(
    folder: Path, data
):
    path = folder / SHARD
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    key = data.draw(st.sampled_from([None, *sorted(header[name])]))
    value = data.draw(st.sampled_from(WRONG))
    if key is None:
        header[name] = value
    else:
        header[name][key] = value
    damaged = json.dumps(header).encode()
    try:
        path.write_bytes(
            struct.pack("<Q", len(damaged)) + damaged + whole[8 + length :]
        )
        opens_or_fails(folder)
    finally:
        path.write_bytes(whole)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_safetensors_with_a_damaged_byte_opens_or_fails(folder: Path, data):
    path = folder / SHARD
    whole = path.read_bytes()
    damaged = bytearray(whole)
    (length,) = struct.unpack("<Q", whole[:8])
    damaged[data.draw(st.integers(0, length + 7))] = data.draw(st.integers(0, 255))
    try:
        path.write_bytes(damaged)
        opens_or_fails(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", INDEX])
def test_json_nested_too_deeply(tmp_path: Path, file: str):
    folder = write_folder(tmp_path / "m", TINY, num_shards=3)
    (folder / file).write_text('{"a":' * 100_000)
    with pytest.raises(DeftError, match=f"{file}: not valid JSON: nested too deeply"):
        open_checkpoint(folder)


def test_safetensors_header_nested_too_deeply(tmp_path: Path):
    folder = write_folder(tmp_path / "m", TINY)
    header = b'{"a":' * 100_000
    content = struct.pack("<Q", len(header)) + header
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DeftError, match="model.safetensors: damaged: "):
        open_checkpoint(folder)


def point_index(folder: Path, shard: object) -> None:
    """Make the index say that all tensors of the first shard are in `shard`."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] = {
        name: shard if file == SHARD else file
        for name, file in index["weight_map"].items()
    }
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "{outside}", "sub/x.safetensors", "..", ".", "", "a\0b"]
    + [None, 5, ["model.safetensors"], {}, "..\\outside.safetensors"],
)
def test_an_index_names_files_in_its_folder_only(tmp_path: Path, shard):
    folder = write_folder(tmp_path / "m", TINY, num_shards=3)
    outside = tmp_path / "outside.safetensors"
    (folder / SHARD).rename(outside)
    point_index(folder, str(outside) if shard == "{outside}" else shard)
    with pytest.raises(DeftError, match="; expected the name of a file in the same"):
        open_checkpoint(folder)


def test_a_shard_may_be_a_link_as_in_the_hubs_cache(tmp_path: Path):
    folder = write_folder(tmp_path / "m", TINY, num_shards=3)
    (tmp_path / "blobs").mkdir()
    (folder / SHARD).rename(tmp_path / "blobs" / "0123")
    (folder / SHARD).symlink_to("../blobs/0123")
    checkpoint = open_checkpoint(folder)
    check_shapes(TINY, checkpoint)


def test_names_of_any_length_are_no_files(tmp_path: Path):
    folder = write_folder(tmp_path / "m", TINY, num_shards=3)
    point_index(folder, "x" * 5000)
    with pytest.raises(DeftError, match="which is missing") as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))
    with pytest.raises(DeftError, match="no such model"):
        open_checkpoint("x" * 5000)
    with pytest.raises(DeftError, match="~nosuchuser/x: no such model"):
        open_checkpoint("~nosuchuser/x")


@pytest.mark.parametrize(
    "file", [SHARD, "config.json", "generation_config.json", INDEX]
)
def test_a_pipe_does_not_hang(tmp_path: Path, file: str):
    folder = write_folder(tmp_path / "m", TINY, num_shards=3)
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(DeftError, match="not a regular file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x", 5])
def test_an_index_names_tensors(tmp_path: Path, weight_map):
    folder = write_folder(tmp_path / "m", TINY, num_shards=3)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(DeftError, match="expected an object weight_map"):
        open_checkpoint(folder)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_gguf_with_a_damaged_byte_anywhere_opens_or_fails(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    whole_path = folder / "whole.gguf"
    if not whole_path.exists():
        write_gguf(whole_path, TINY)
    damaged = bytearray(whole_path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(
        st.integers(0, 255)
    )
    path = folder / "damaged.gguf"
    path.write_bytes(damaged)
    opens_or_fails(path)
