"""GGUF checkpoints: metadata, names, row order, every kind of quantisation."""

from dataclasses import replace

import gguf
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints import gguf_reader
from deft_jax.models.checkpoints.checkpoint import check_shapes, open_checkpoint
from deft_jax.models.checkpoints.gguf_blocks import BlockMatrix
from deft_jax.models.checkpoints.gguf_reader import GGUFCheckpoint
from deft_jax.models.config.shapes import SHAPES
from tests.support.models.synthetic_checkpoints import (
    add_weights,
    finish,
    gguf_writer,
    random_weights,
    write_gguf,
)

TINY = SHAPES["tiny"]
KINDS = gguf.GGMLQuantizationType
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_names_shapes_and_config_round_trip(tmp_path, tie_embeddings):
    config = replace(TINY, tie_embeddings=tie_embeddings)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", config))
    assert checkpoint.config == config
    assert list(checkpoint.names()) == list(config.expected_tensors())
    check_shapes(config, checkpoint)


@pytest.mark.parametrize(
    "kind",
    [
        KINDS.F32,
        KINDS.F16,
        KINDS.BF16,
        KINDS.Q8_0,
        KINDS.Q4_0,
        KINDS.Q4_1,
        KINDS.Q5_0,
        KINDS.Q5_1,
    ],
)
def test_weights_come_back_in_hugging_face_layout(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(gguf_reader, "_CHUNK_VALUES", 96)
    weights = random_weights(TINY)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "w.gguf", TINY, weights, kind))
    for name, weight in weights.items():
        stored = kind if weight.ndim == 2 else KINDS.F32
        expected = gguf.quants.dequantize(gguf.quants.quantize(weight, stored), stored)
        actual = checkpoint.read(name)
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected, err_msg=name)
        matrix = checkpoint.matrix(name)
        if isinstance(matrix, BlockMatrix):
            matrix = matrix.transposed(0, len(matrix)).T
        np.testing.assert_array_equal(matrix, expected, err_msg=name)


def test_k_quants_are_read(tmp_path):
    config = replace(TINY, hidden_size=256, num_layers=1)
    rng = np.random.default_rng(0)
    down = rng.integers(0, 256, (256, 210), np.uint8)
    down[:, -2:] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    config = replace(config, mlp_size=256)
    weights = random_weights(config)
    name = "model.layers.0.mlp.down_proj.weight"
    del weights[name]
    writer = gguf_writer(tmp_path / "k.gguf", config)
    add_weights(writer, config, weights)
    writer.add_tensor("blk.0.ffn_down.weight", down, raw_dtype=KINDS.Q6_K)
    finish(writer)
    checkpoint = GGUFCheckpoint(tmp_path / "k.gguf")
    assert checkpoint.shape(name) == (256, 256)
    expected = gguf.quants.dequantize(down, KINDS.Q6_K)
    np.testing.assert_array_equal(checkpoint.read(name), expected)


def test_rope_factors_are_a_tensor(tmp_path):
    factors = np.linspace(1, 8, TINY.head_dim // 2, dtype=np.float32)
    writer = gguf_writer(tmp_path / "rope.gguf", TINY)
    add_weights(writer, TINY, random_weights(TINY))
    writer.add_tensor("rope_freqs.weight", factors)
    finish(writer)
    checkpoint = GGUFCheckpoint(tmp_path / "rope.gguf")
    assert checkpoint.config.rope_factors == tuple(factors.tolist())
    check_shapes(checkpoint.config, checkpoint)


def test_metadata_are_python_values(tmp_path):
    writer = gguf_writer(tmp_path / "meta.gguf", TINY)
    add_weights(writer, TINY, random_weights(TINY))
    writer.add_array("custom.merges", ["Ġ t", "é ü", ""])
    writer.add_array("custom.scores", [0.5, -1.0])
    writer.add_bool("custom.flag", True)
    writer.add_chat_template("{{ messages }}")
    finish(writer)
    metadata = GGUFCheckpoint(tmp_path / "meta.gguf").metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list) and tokens[255] == "token255"
    assert metadata["tokenizer.ggml.token_type"] == [1] * 256
    assert metadata["custom.merges"] == ["Ġ t", "é ü", ""]
    assert metadata["custom.scores"] == [0.5, -1.0]
    assert metadata["custom.flag"] is True
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"


def test_metadata_equal_those_of_the_package(smollm2_path):
    fields = gguf.GGUFReader(smollm2_path).fields
    expected = {key: field.contents() for key, field in fields.items()}
    assert GGUFCheckpoint(smollm2_path).metadata == expected


def test_smollm2_is_what_its_authors_published(smollm2_path):
    checkpoint = open_checkpoint("smollm2-135m-instruct")
    assert checkpoint.source == smollm2_path
    assert checkpoint.config == SHAPES["smollm2_135m"]
    check_shapes(SHAPES["smollm2_135m"], checkpoint)
    norm = checkpoint.read("model.norm.weight")
    assert norm.shape == (576,) and np.isfinite(norm).all()


def test_other_architecture_is_named(tmp_path):
    finish(gguf_writer(tmp_path / "other.gguf", TINY, arch="gemma"))
    with pytest.raises(DeftError, match="other.gguf: .* 'gemma'; supported: llama"):
        GGUFCheckpoint(tmp_path / "other.gguf")


def test_type_without_dequantiser_is_named(tmp_path):
    writer = gguf_writer(tmp_path / "i8.gguf", TINY)
    writer.add_tensor("blk.1.attn_q.weight", np.ones((256, 64), np.int8))
    finish(writer)
    with pytest.raises(DeftError, match="blk.1.attn_q.weight has type I8; supported"):
        GGUFCheckpoint(tmp_path / "i8.gguf").read(Q_PROJ)


def test_absent_tensor_is_named(tmp_path):
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", TINY))
    with pytest.raises(DeftError, match="tiny.gguf: no tensor lm_head.weight"):
        checkpoint.read("lm_head.weight")
    with pytest.raises(DeftError, match="tiny.gguf: no tensor lm_head.weight"):
        checkpoint.matrix("lm_head.weight")
