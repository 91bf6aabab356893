"""Configs: published shapes, what the formats say, rotary frequencies."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.models.config.config import LlamaConfig
from deft_jax.models.config.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
    inverse_frequencies,
)
from deft_jax.models.config.shapes import SHAPES

LLAMA3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
SMOLLM2_GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": 64,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.vocab_size": 49152,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("llama3_2_1b", 1_235_814_400),
        ("llama3_8b", 8_030_261_248),
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_1_70b", 70_553_706_496),
    ],
)
def test_published_shapes_have_the_published_number_of_weights(name, num_parameters):
    assert SHAPES[name].num_parameters == num_parameters


def test_derived_values():
    config = SHAPES["llama3_8b"]
    assert config.group_size == 4
    assert config.kv_bytes_per_token("bfloat16") == 131_072
    assert config.kv_bytes_per_token(np.float32) == 262_144
    assert config.expected_tensors()["lm_head.weight"] == (128_256, 4096)
    assert "lm_head.weight" not in SHAPES["llama3_2_1b"].expected_tensors()


def test_reads_the_published_hf_config():
    assert LlamaConfig.from_hf(LLAMA3_2_1B) == SHAPES["llama3_2_1b"]


def test_absent_hf_values_take_the_defaults_of_transformers():
    required = ("hidden_size", "intermediate_size", "vocab_size", "model_type")
    required += ("num_hidden_layers", "num_attention_heads")
    config = LlamaConfig.from_hf({key: LLAMA3_2_1B[key] for key in required})
    assert (config.num_kv_heads, config.head_dim) == (32, 64)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)
    assert (config.rms_eps, config.context_length) == (1e-6, 2048)
    assert (config.tie_embeddings, config.eos_token_ids) == (False, ())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 2e4},
        {"rope_scaling": {"rope_type": "linear", "factor": 4}, "rope_theta": 2e4},
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 2e4},
            "rope_theta": None,
        },
    ],
)
def test_rope_of_every_age_is_understood(rope):
    values = {**LLAMA3_2_1B, "rope_scaling": None, **rope}
    config = LlamaConfig.from_hf(values)
    assert config.rope_theta == 2e4
    assert config.rope_scaling == LinearScaling(factor=4.0)


def test_default_rope_parameters_mean_no_scaling():
    rope = {"rope_type": "default", "rope_theta": 3e5}
    values = {**LLAMA3_2_1B, "rope_scaling": None, "rope_parameters": rope}
    config = LlamaConfig.from_hf(values)
    assert (config.rope_theta, config.rope_scaling) == (3e5, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "qwen2", "model_type is 'qwen2'; supported: llama or mistral"),
        ("model_type", None, "model_type is missing; expected llama"),
        ("hidden_act", "gelu", "hidden_act is 'gelu'; supported: silu"),
        ("attention_bias", 1, "attention_bias is 1; supported: true or false"),
        ("mlp_bias", "yes", "mlp_bias is 'yes'; supported: true or false"),
        ("quantization_config", {"bits": 4}, "quantization_config .* supported: none"),
        ("hidden_size", "2048", "hidden_size is '2048'; supported: a positive integer"),
        ("num_hidden_layers", True, "num_hidden_layers is True"),
        ("vocab_size", None, "vocab_size is missing"),
        ("rms_norm_eps", math.nan, "rms_norm_eps is nan"),
        ("tie_word_embeddings", 1, "tie_word_embeddings is 1"),
        ("eos_token_id", [1, "x"], "eos_token_id is .* token ids"),
        ("num_key_value_heads", 5, "32 query heads cannot share 5 KV heads"),
        ("head_dim", 63, "head_dim is 63"),
        ("rope_scaling", "linear", "rope_scaling is 'linear'; supported: an object"),
        ("rope_scaling", {"rope_type": "ntk", "factor": 4}, "'ntk'; .* longrope"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 0}, "factor is 0; supported"),
        ("rope_scaling", {"type": "dynamic"}, "factor is missing"),
        ("rope_scaling", {"type": "longrope"}, "short_factor is missing"),
        (
            "rope_scaling",
            {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 8},
            "8 rotary factors; expected 32",
        ),
        (
            "rope_parameters",
            {"rope_type": "yarn", "factor": 4, "rope_theta": 1},
            "the rotary base is 1; YaRN needs more",
        ),
        ("rope_scaling", {"type": "linear", "factor": 1e-300}, "frequencies overflow"),
        ("hidden_size", 2**31, "hidden_size is 2147483648; .* at most 2147483647"),
        ("rope_theta", 10**400, "rope_theta is 1000.*; supported: a positive number"),
        ("rope_scaling", {"type": "linear"}, "factor is missing"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8}, "_freq_factor is miss"),
    ],
)
def test_hf_values_that_are_not_supported_are_named(key, value, message):
    with pytest.raises(DeftError, match=f"^here: .*{message}"):
        LlamaConfig.from_hf({**LLAMA3_2_1B, key: value}, source="here")


def test_llama3_scaling_needs_two_different_frequencies():
    rope = {**LLAMA3_2_1B["rope_scaling"], "high_freq_factor": 1.0}
    with pytest.raises(DeftError, match="high_freq_factor is 1.0; .* more than"):
        LlamaConfig.from_hf({**LLAMA3_2_1B, "rope_scaling": rope})


def test_reads_gguf_metadata():
    config = LlamaConfig.from_gguf(SMOLLM2_GGUF, tie_embeddings=True)
    assert config == SHAPES["smollm2_135m"]


def test_gguf_ends_a_text_or_a_turn_and_counts_tokens():
    values = {**SMOLLM2_GGUF, "tokenizer.ggml.eot_token_id": 7}
    values["tokenizer.ggml.tokens"] = list("abcdefgh")
    del values["llama.vocab_size"]
    config = LlamaConfig.from_gguf(values, tie_embeddings=True)
    assert config.eos_token_ids == (2, 7)
    assert config.vocab_size == 8


@pytest.mark.parametrize(
    ("given", "kept"),
    [(2**40, ()), ([2, 2**40], (2,)), ([-1, 7], (7,)), (128_256, ())],
)
def test_ids_outside_the_vocabulary_are_ignored_with_a_warning(given, kept):
    with pytest.warns(UserWarning, match="^here: .* outside the vocabulary of 128256"):
        config = LlamaConfig.from_hf(
            {**LLAMA3_2_1B, "eos_token_id": given}, source="here"
        )
    assert config.eos_token_ids == kept
    assert config.bos_token_id == 128_000


def test_what_does_not_change_the_result_is_ignored():
    values = {**LLAMA3_2_1B, "pretraining_tp": 2}
    assert LlamaConfig.from_hf(values) == SHAPES["llama3_2_1b"]


def test_biases_add_tensors():
    values = {**LLAMA3_2_1B, "attention_bias": True}
    config = LlamaConfig.from_hf(values)
    tensors = config.expected_tensors()
    assert tensors["model.layers.0.self_attn.k_proj.bias"] == (512,)
    assert tensors["model.layers.15.self_attn.o_proj.bias"] == (2048,)
    assert "model.layers.0.mlp.up_proj.bias" not in tensors
    extra = 16 * (2 * 2048 + 2 * 512)
    assert config.num_parameters == SHAPES["llama3_2_1b"].num_parameters + extra
    both = LlamaConfig.from_hf({**values, "mlp_bias": True})
    assert len(both.biases) == 7


MISTRAL = {**LLAMA3_2_1B, "model_type": "mistral", "sliding_window": None}


@pytest.mark.parametrize("window", [None, 131_072, 200_000])
def test_mistral_without_a_window_that_bites_is_a_llama(window):
    values = {**MISTRAL, "sliding_window": window, "attention_bias": True}
    assert LlamaConfig.from_hf(values) == SHAPES["llama3_2_1b"]


def test_mistral_takes_the_defaults_of_mistral():
    left_out = ("num_key_value_heads", "max_position_embeddings", "rope_scaling")
    values = {key: MISTRAL[key] for key in MISTRAL if key not in left_out}
    config = LlamaConfig.from_hf(values)
    assert (config.num_kv_heads, config.context_length) == (8, 131_072)
    assert (
        LlamaConfig.from_hf(values | {"num_key_value_heads": None}).num_kv_heads == 32
    )


@pytest.mark.parametrize("change", [{"sliding_window": 4096}, {}])
def test_mistral_with_a_window_is_refused(change):
    values = {key: MISTRAL[key] for key in MISTRAL if key != "sliding_window"}
    message = "window of 4096 tokens is not supported; expected .* null or at least"
    with pytest.raises(DeftError, match=message):
        LlamaConfig.from_hf(values | change)


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, 4.0),
        ({"scaling.factor": 4.0}, 4.0),
        ({"scale_linear": 4.0}, 4.0),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.factor": 0.0}, None),
    ],
)
def test_gguf_linear_scaling(rope, scaling):
    values = SMOLLM2_GGUF | {f"llama.rope.{key}": value for key, value in rope.items()}
    config = LlamaConfig.from_gguf(values, tie_embeddings=True)
    expected = scaling and LinearScaling(factor=scaling)
    assert config.rope_scaling == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "qwen2", "'qwen2'; supported: llama"),
        ("llama.expert_count", 8, "expert_count is 8; supported: 0"),
        ("llama.attention.head_count", [9, 8], r"\[9, 8\]; supported: a positive int"),
        ("llama.attention.value_length", 32, "value_length is 32; supported: 64"),
        ("llama.rope.dimension_count", 32, "dimension_count is 32; supported: 64"),
        ("llama.rope.scaling.type", "ntk", "'ntk'; supported: none or linear or yarn"),
        ("llama.rope.scaling.type", "longrope", "needs the tensors .* got none of"),
        ("llama.context_length", None, "context_length is missing"),
    ],
)
def test_gguf_values_that_are_not_supported_are_named(key, value, message):
    with pytest.raises(DeftError, match=message):
        LlamaConfig.from_gguf({**SMOLLM2_GGUF, key: value}, tie_embeddings=True)


def test_gguf_needs_one_rope_factor_for_each_frequency():
    with pytest.raises(DeftError, match="3 rotary factors; expected 32"):
        LlamaConfig.from_gguf(
            SMOLLM2_GGUF,
            tie_embeddings=True,
            rope_factors={"rope_freqs.weight": (1.0, 1.0, 1.0)},
        )


@pytest.mark.parametrize(
    ("scaling", "factors", "expected"),
    [
        (None, None, [1.0, 1e-2, 1e-4, 1e-6]),
        (LinearScaling(factor=4.0), None, [0.25, 2.5e-3, 2.5e-5, 2.5e-7]),
        (None, (1.0, 2.0, 4.0, 8.0), [1.0, 5e-3, 2.5e-5, 1.25e-7]),
        # Turns in 8192 tokens: 1304, 13, 0.13, 0.0013; more than 4 is kept.
        (Llama3Scaling(factor=8.0), None, [1.0, 1e-2, 1.25e-5, 1.25e-7]),
    ],
)
def test_inverse_frequencies_by_hand(scaling, factors, expected):
    frequencies = inverse_frequencies(8, 1e8, scaling, factors)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=1e-6)


YARN = YarnScaling(factor=4.0, attention_factor=1.0, original_context_length=100)
YARN_EXACT = replace(YARN, beta_fast=8.0, truncate=False)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        # Base 1e8 and 4 pairs: pair i is 1e-2i. 32 turns in 100 tokens are at pair
        # 4 ln(100 / 64 pi) / ln(1e8) = -0.15, 1 turn at 0.60; rounded outwards -1 and
        # 1, and -1 is no pair: pair 0 is kept, from pair 1 on all are divided.
        (YARN, [1.0, 2.5e-3, 2.5e-5, 2.5e-7]),
        # 8 turns are at 0.150 and 1 turn at 0.601: pair 0 is below, pair 1 above.
        (YARN_EXACT, [1.0, 2.5e-3, 2.5e-5, 2.5e-7]),
        # 3183 tokens: 8 turns at 0.90079, 1 turn at 1.35233; pair 1 is divided by 4 for
        # 0.2197 of it: 1e-2 (0.2197 / 4 + 0.7803) = 8.352e-3.
        (
            replace(YARN_EXACT, original_context_length=3183),
            [1.0, 8.352e-3, 2.5e-5, 2.5e-7],
        ),
    ],
)
def test_yarn_by_hand(scaling, expected):
    frequencies = inverse_frequencies(8, 1e8, scaling)
    np.testing.assert_allclose(frequencies, expected, rtol=1e-4)


def test_dynamic_scaling_changes_nothing_within_the_context():
    rope = {"rope_type": "dynamic", "factor": 4.0}
    config = LlamaConfig.from_hf({**LLAMA3_2_1B, "rope_scaling": rope})
    assert config == replace(SHAPES["llama3_2_1b"], rope_scaling=None)


@pytest.mark.parametrize(
    ("rope", "attention_factor"),
    [
        ({"factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"factor": 1.0}, 1.0),
        ({}, 0.1 * math.log(16) + 1),
        ({"factor": 4.0, "attention_factor": 0.5}, 0.5),
        ({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        (
            {"factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0},
            (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1),
        ),
    ],
)
def test_yarn_sharpens_attention(rope, attention_factor):
    rope = {"rope_type": "yarn", "original_max_position_embeddings": 8192, **rope}
    config = LlamaConfig.from_hf({**LLAMA3_2_1B, "rope_scaling": rope})
    assert config.rope_attention_factor == pytest.approx(attention_factor)


def longrope(context_length: int, **changes) -> LlamaConfig:
    """Return a config with LongRoPE of original length 4096."""
    rope = {
        "type": "longrope",
        "short_factor": [1.0] * 31 + [2.0],
        "long_factor": [float(i) for i in range(1, 33)],
        "original_max_position_embeddings": 4096,
    }
    values = {**LLAMA3_2_1B, "rope_scaling": rope | changes}
    return LlamaConfig.from_hf({**values, "max_position_embeddings": context_length})


def test_longrope_takes_its_factors_by_the_context():
    plain = replace(SHAPES["llama3_2_1b"], rope_scaling=None).inverse_frequencies()
    long = longrope(131_072)
    np.testing.assert_allclose(
        long.inverse_frequencies(), plain / np.arange(1, 33), rtol=1e-6
    )
    factor = math.sqrt(1 + math.log(32) / math.log(4096))
    assert long.rope_attention_factor == pytest.approx(factor)
    short = long.with_context_length(4096)
    assert short.context_length == 4096
    assert short.rope_attention_factor == long.rope_attention_factor
    np.testing.assert_allclose(
        short.inverse_frequencies(), plain / ([1] * 31 + [2]), rtol=1e-6
    )
    assert short.with_context_length(100) == replace(short, context_length=100)
    assert longrope(4096).rope_attention_factor == 1.0


def test_original_context_beside_the_scaling_wins():
    rope = {**LLAMA3_2_1B["rope_scaling"]}
    values = {**LLAMA3_2_1B, "original_max_position_embeddings": 4096}
    config = LlamaConfig.from_hf(values)
    assert config.rope_scaling == Llama3Scaling(
        factor=32.0, original_context_length=4096
    )
    del rope["original_max_position_embeddings"]
    config = LlamaConfig.from_hf({**LLAMA3_2_1B, "rope_scaling": rope})
    assert config.rope_scaling == Llama3Scaling(
        factor=32.0, original_context_length=131_072
    )


@pytest.mark.parametrize("length", [0, -1, 8193])
def test_context_beyond_the_models_is_refused(length):
    with pytest.raises(DeftError, match=f"context_length is {length}; .* 1 to 8192"):
        SHAPES["smollm2_135m"].with_context_length(length)


def test_gguf_yarn():
    rope = {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 2048,
        "attn_factor": 0.5,
        "yarn_beta_fast": 16.0,
    }
    values = SMOLLM2_GGUF | {f"llama.rope.scaling.{k}": v for k, v in rope.items()}
    config = LlamaConfig.from_gguf(values, tie_embeddings=True)
    assert config.rope_scaling == YarnScaling(
        factor=4.0,
        attention_factor=0.5 * (0.1 * math.log(4) + 1),
        beta_fast=16.0,
        original_context_length=2048,
    )


def test_gguf_longrope():
    values = SMOLLM2_GGUF | {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": 2048,
        "llama.rope.scaling.attn_factor": 1.25,
    }
    short, long = (1.0,) * 32, (2.0,) * 32
    factors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    config = LlamaConfig.from_gguf(values, tie_embeddings=True, rope_factors=factors)
    assert config.rope_scaling == LongRopeScaling(
        short_factors=short,
        long_factors=long,
        attention_factor=1.25,
        original_context_length=2048,
        is_long=True,
    )
    del factors["rope_factors_long.weight"]
    with pytest.raises(DeftError, match="needs the tensors .* got one of them"):
        LlamaConfig.from_gguf(values, tie_embeddings=True, rope_factors=factors)


def test_llama3_interpolates_between_the_wavelengths():
    # 8192 tokens at 1e-3 radians are 1.30380 turns, (1.30380 - 1) / (4 - 1) = 0.10127
    # of the way; 0.10127 * 1e-3 + 0.89873 * 1e-3 / 8 = 2.13609e-4.
    scaling = Llama3Scaling(factor=8.0)
    assert inverse_frequencies(8, 1e4, scaling)[3] == pytest.approx(2.13609e-4, 1e-5)


@pytest.mark.parametrize("name", ["llama3_2_1b", "llama3_1_8b"])
def test_llama3_follows_the_reference_formula(name):
    config = SHAPES[name]
    scaling = config.rope_scaling
    plain = replace(config, rope_scaling=None).inverse_frequencies()
    assert isinstance(scaling, Llama3Scaling)
    expected = []
    for frequency in plain.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / scaling.high_freq_factor:
            expected.append(frequency)
        elif wavelength > 8192 / scaling.low_freq_factor:
            expected.append(frequency / scaling.factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / scaling.factor)
            expected[-1] += smooth * frequency
    np.testing.assert_allclose(config.inverse_frequencies(), expected, rtol=1e-5)


def test_factors_as_gguf_stores_them_equal_llama3_scaling():
    config = SHAPES["llama3_1_8b"]
    plain = replace(config, rope_scaling=None)
    factors = plain.inverse_frequencies() / config.inverse_frequencies()
    stored = replace(plain, rope_factors=tuple(factors.tolist()))
    assert (factors[0], factors[-1]) == pytest.approx((1.0, 8.0))
    np.testing.assert_allclose(
        stored.inverse_frequencies(), config.inverse_frequencies(), rtol=1e-6
    )
