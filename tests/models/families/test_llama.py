"""The network against NumPy: every kind of config, both formats, every dtype."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.models.config.config import LlamaConfig
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama, rms_norm
from deft_jax.models.load import load_model
from tests.support.dense_attention import dense_logits
from tests.support.models.loadable_checkpoints import (
    mild_weights,
    write_loadable_folder,
    write_loadable_gguf,
)
from tests.support.models.numpy_llama import read_folder, read_gguf
from tests.support.models.tree_logits import tree_logits
from tests.support.tolerances import row_errors

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 2.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 4.0,
}
LONG_ROPE = {
    "type": "longrope",
    "short_factor": np.linspace(1, 3, 32).tolist(),
    "long_factor": np.geomspace(1, 16, 32).tolist(),
    "original_max_position_embeddings": 128,
}
SHORT_ROPE = LONG_ROPE | {
    "original_max_position_embeddings": 2048,
    "attention_factor": 1.5,
}
ATTENTION = frozenset(f"self_attn.{part}_proj" for part in "qkvo")
MLP = frozenset(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
ATOL = 1e-3
"""Largest error of a float32 logit; the logits are of size 1."""

ROW_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
"""Largest error of a token's logits, as a share of their norm."""

CHUNK = 8
TOKENS = np.random.default_rng(3).integers(0, 256, 3 * CHUNK - 2)


def shape(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    tied: bool,
    biases: frozenset[str] = frozenset(),
) -> LlamaConfig:
    """Return a tiny Llama whose H * D differs from its E of 96."""
    return dataclasses.replace(
        SHAPES["tiny"],
        hidden_size=96,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        tie_embeddings=tied,
        biases=biases,
    )


FOLDERS = {
    "group1_tied": (shape(2, 2, 64, tied=True), None),
    "group2_untied_linear": (shape(4, 2, 64, tied=False), LINEAR_ROPE),
    "group3_untied_llama3_d80": (shape(3, 1, 80, tied=False), LLAMA3_ROPE),
    "group4_tied_llama3": (shape(4, 1, 64, tied=True), LLAMA3_ROPE),
    "dynamic": (shape(2, 2, 64, tied=False), DYNAMIC_ROPE),
    "yarn": (shape(4, 2, 64, tied=True), YARN_ROPE),
    "yarn_attention_factor": (
        shape(4, 2, 64, tied=True),
        YARN_ROPE | {"attention_factor": 0.7},
    ),
    "longrope_long": (shape(4, 2, 64, tied=False), LONG_ROPE),
    "longrope_short": (shape(2, 1, 64, tied=True), SHORT_ROPE),
    "attention_biases": (shape(4, 2, 64, tied=False, biases=ATTENTION), None),
    "mlp_biases": (shape(4, 2, 64, tied=True, biases=MLP), LINEAR_ROPE),
    "all_biases_yarn": (shape(3, 1, 64, tied=True, biases=ATTENTION | MLP), YARN_ROPE),
}
GGUFS = {
    "group1_untied_d80": (shape(2, 2, 80, tied=False), {}),
    "group2_tied_factors": (
        shape(4, 2, 64, tied=True),
        {"rope_factors": np.linspace(1, 8, 32)},
    ),
    "group3_tied_linear": (shape(6, 2, 64, tied=True), {"linear_factor": 4.0}),
    "group4_untied_factors_d80": (
        shape(4, 1, 80, tied=False),
        {"rope_factors": np.geomspace(1, 32, 40)},
    ),
    "yarn": (
        shape(4, 2, 64, tied=True),
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": 8.0,
                "original_context_length": 128,
            }
        },
    ),
    "longrope": (
        shape(2, 2, 64, tied=True),
        {
            "rope_scaling": {
                "type": "longrope",
                "attn_factor": 1.25,
                "original_context_length": 128,
            },
            "more_tensors": {
                "rope_factors_long.weight": np.geomspace(1, 16, 32),
                "rope_factors_short.weight": np.ones(32),
            },
        },
    ),
    "all_biases": (shape(4, 2, 64, tied=False, biases=ATTENTION | MLP), {}),
    # As networks of other families are stored: no bias behind the attention.
    "biases_of_some": (
        shape(
            4,
            2,
            64,
            tied=True,
            biases=ATTENTION - {"self_attn.o_proj"} | {"mlp.up_proj"},
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_computes_what_numpy_computes(tmp_path: Path, name: str):
    config, rope = FOLDERS[name]
    weights = mild_weights(config)
    folder = write_loadable_folder(
        tmp_path / "m", config, weights, num_shards=3, rope_scaling=rope
    )
    agrees(folder, read_folder)


@pytest.mark.parametrize("name", GGUFS)
def test_gguf_computes_what_numpy_computes(tmp_path: Path, name: str):
    config, rope = GGUFS[name]
    weights = mild_weights(config)
    agrees(write_loadable_gguf(tmp_path / "m.gguf", config, weights, **rope), read_gguf)


def agrees(source: Path, read: Callable) -> None:
    """Assert that dense and tree attention give NumPy's logits in float32."""
    expected = read(source).logits(TOKENS)
    model, _ = load_model(source)
    dense = dense_logits(model, jnp.asarray(TOKENS))
    np.testing.assert_allclose(dense, expected, rtol=0, atol=ATOL)
    tree = tree_logits(model, TOKENS, chunk=CHUNK)
    np.testing.assert_allclose(tree, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["group1_tied", "group3_untied_llama3_d80", "all_biases_yarn"]
)
def test_narrow_dtypes_stay_near_numpy(tmp_path: Path, name: str, dtype: str):
    config, rope = FOLDERS[name]
    weights = {n: w.astype(dtype) for n, w in mild_weights(config).items()}
    folder = write_loadable_folder(tmp_path / "m", config, weights, rope_scaling=rope)
    expected = read_folder(folder).logits(TOKENS)
    model, _ = load_model(folder, dtype=dtype)
    assert model.dtype == jnp.dtype(dtype)
    for actual in (
        dense_logits(model, jnp.asarray(TOKENS)),
        tree_logits(model, TOKENS, chunk=CHUNK),
    ):
        assert actual.dtype == jnp.float32
        errors = row_errors(actual, expected)
        np.testing.assert_array_less(errors, ROW_TOLERANCE[dtype])


def test_one_row_converts_no_bfloat16_weight_as_a_whole_on_a_cpu():
    model = Llama.random(SHAPES["tiny"], seed=0, dtype=jnp.bfloat16)
    step = jax.jit(lambda model, tokens: dense_logits(model, tokens))
    program = step.lower(model, jnp.zeros(1, jnp.int32)).compile().as_text()
    assert program is not None
    shapes = {leaf.shape for leaf in jax.tree.leaves(model) if leaf.ndim == 2}
    for rows, columns in shapes:
        assert f"bf16[{rows},{columns}]" in program
        assert f"f32[{rows},{columns}]" not in program


def test_one_row_of_bfloat16_is_near_the_same_row_among_others():
    model = Llama.random(SHAPES["tiny"], seed=0, dtype=jnp.bfloat16)
    # Every length of the cache is compiled; all tokens are in sequences of few.
    for first in (*range(0, len(TOKENS) - 4, 4), len(TOKENS) - 4):
        tokens = jnp.asarray(TOKENS[first : first + 4])
        several = dense_logits(model, tokens, chunk=2)
        single = dense_logits(model, tokens, chunk=1)
        np.testing.assert_array_less(row_errors(single, several), 3e-2)


def test_caches_continue_a_sequence():
    model = Llama.random(SHAPES["tiny"], seed=0, dtype=jnp.float32)
    tokens = jnp.asarray(TOKENS)
    whole = dense_logits(model, tokens)
    pieces = dense_logits(model, tokens, chunk=10)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-5)


def test_random_weights_follow_the_seed():
    first, same, other = (Llama.random(SHAPES["tiny"], seed=s) for s in (0, 0, 1))
    assert first.dtype == jnp.bfloat16
    assert first.config == SHAPES["tiny"]
    for weight, twin in zip(*map(jax.tree.leaves, (first, same)), strict=True):
        np.testing.assert_array_equal(weight, twin)
    np.testing.assert_array_equal(first.norm[...], 1)
    assert jnp.std(first.head.weight[...].astype(jnp.float32)) == pytest.approx(
        0.02, rel=0.1
    )
    assert not jnp.array_equal(first.head.weight[...], other.head.weight[...])


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("llama3_2_1b", 1_235_814_400),
        ("llama3_8b", 8_030_261_248),
        ("llama3_1_70b", 70_553_706_496),
    ],
)
def test_published_shapes_need_no_memory_to_be_checked(name: str, num_parameters: int):
    config = SHAPES[name]
    model = jax.eval_shape(lambda: Llama.random(config, seed=0))
    # The norms of the layers are multiplied into their matrices.
    norms = 2 * config.num_layers * config.hidden_size
    num_weights = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert num_weights + norms == num_parameters
    assert config.num_parameters == num_parameters
    logits = jax.eval_shape(lambda m, t: dense_logits(m, t), model, TOKENS)
    assert logits.shape == (len(TOKENS), config.vocab_size)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norm_does_not_overflow(dtype: str):
    x = jnp.array([[300.0, -300.0, 300.0, -300.0]], dtype)
    out = rms_norm(x, jnp.full(4, 2, dtype), 1e-5)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out, np.sign(x) * 2)
