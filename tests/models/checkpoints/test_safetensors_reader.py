"""Safetensors folders: one file or shards, stored dtypes, generation config."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.checkpoint import check_shapes, open_checkpoint
from deft_jax.models.checkpoints.safetensors_reader import SafetensorsCheckpoint
from deft_jax.models.config.shapes import SHAPES
from tests.support.models.synthetic_checkpoints import (
    hf_config,
    random_weights,
    write_folder,
)

TINY = SHAPES["tiny"]


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_weights_round_trip(tmp_path, num_shards, tie_embeddings):
    config = replace(TINY, tie_embeddings=tie_embeddings)
    weights = random_weights(config)
    checkpoint = SafetensorsCheckpoint(
        write_folder(tmp_path / "model", config, weights, num_shards)
    )
    assert checkpoint.config == config
    assert checkpoint.metadata == {}
    check_shapes(config, checkpoint)
    assert set(checkpoint.names()) == set(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(checkpoint.read(name), weight, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_keep_their_dtype(tmp_path, dtype):
    weights = {name: w.astype(dtype) for name, w in random_weights(TINY).items()}
    checkpoint = SafetensorsCheckpoint(write_folder(tmp_path / "m", TINY, weights))
    for name, weight in weights.items():
        actual = checkpoint.read(name)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, weight)


def test_generation_config_ends_the_text(tmp_path):
    folder = write_folder(tmp_path / "model", TINY)
    config = hf_config(TINY) | {"eos_token_id": 5, "bos_token_id": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert SafetensorsCheckpoint(folder).config.eos_token_ids == (5,)
    generation = folder / "generation_config.json"
    generation.write_text('{"eos_token_id": [6, 7]}')
    checkpoint = SafetensorsCheckpoint(folder)
    assert checkpoint.config.bos_token_id == 4
    assert checkpoint.config.eos_token_ids == (6, 7)
    generation.write_text('{"temperature": 0.6}')
    assert SafetensorsCheckpoint(folder).config.eos_token_ids == (5,)


def test_a_folder_may_hold_a_sentencepiece_tokenizer_alone(tmp_path):
    folder = write_folder(tmp_path / "model", TINY)
    (folder / "tokenizer.model").write_bytes(b"")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.source == folder
    check_shapes(TINY, checkpoint)


def test_other_dtypes_are_named(tmp_path):
    folder = write_folder(tmp_path / "model", TINY)
    save_file({"model.norm.weight": np.ones(64)}, folder / "model.safetensors")
    with pytest.raises(DeftError, match="model.norm.weight has type F64; supported"):
        SafetensorsCheckpoint(folder).read("model.norm.weight")


def test_absent_tensor_is_named(tmp_path):
    checkpoint = SafetensorsCheckpoint(write_folder(tmp_path / "model", TINY))
    with pytest.raises(DeftError, match="model: no tensor lm_head.weight"):
        checkpoint.read("lm_head.weight")
