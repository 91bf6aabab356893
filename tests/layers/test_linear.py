"""Linear layers: bare products with other storage in their place, and nothing more."""

import dataclasses
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deft_jax.layers.linear import Dense
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from tests.support.dense_attention import dense_logits
from tests.support.models.tree_logits import tree_logits
from tests.support.tolerances import row_errors

INPUTS, OUTPUTS, CHUNK = 24, 40, 5
TOKENS = np.random.default_rng(4).integers(0, 256, 3 * CHUNK - 2)
PROJECTIONS = ("qkv", "out", "gate_up", "down")


def normal(shape, dtype, seed: int) -> jax.Array:
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, dtype)


def operations(function, *args) -> Counter[str]:
    """Count the operations of an optimised program by name."""
    program = str(jax.jit(function).lower(*args).compile().as_text())
    return Counter(re.findall(r" = \S+ ([a-z][\w-]*)\(", program))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_dense_layer_is_a_bare_product(dtype: str, rows: int, has_bias: bool):
    x = normal((rows, INPUTS), dtype, 0)
    weight = normal((INPUTS, OUTPUTS), dtype, 1)
    bias = normal((OUTPUTS,), dtype, 2) if has_bias else None
    # A single row of bfloat16 is multiplied twice, which converts no weight on a CPU.
    twice = rows == 1 and dtype == "bfloat16"

    def bare(x, weight, bias):
        rows = jnp.concatenate([x, x]) if twice else x
        products = jnp.dot(rows, weight)[: len(x)]
        return products if bias is None else products + bias[None]

    def linear(x, weight, bias):
        return Dense(weight, bias)(x)

    args = x, weight, bias
    assert operations(linear, *args) == operations(bare, *args)
    actual, expected = (jax.jit(f)(*args) for f in (linear, bare))
    assert actual.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(actual, expected)


def test_products_come_without_the_bias_in_the_dtype_of_their_reader():
    x, weight = normal((3, INPUTS), "float16", 0), normal((INPUTS, 8), "float16", 1)
    linear = Dense(weight, jnp.full(8, 100.0, jnp.float16))
    products = linear.products(x, jnp.float32)
    assert products.dtype == jnp.float32
    expected = np.asarray(x, np.float32) @ np.asarray(weight, np.float32)
    np.testing.assert_allclose(products, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_dtype", ["bfloat16", "float16"])
def test_narrow_weights_under_wide_activations_lose_nothing(weight_dtype: str):
    x = normal((3, INPUTS), "float32", 0)
    linear = Dense(normal((INPUTS, OUTPUTS), weight_dtype, 1))
    wide = Dense(linear.weight[...].astype(jnp.float32))
    assert linear(x).dtype == jnp.float32
    np.testing.assert_array_equal(linear(x), wide(x))
    columns = linear.columns(jnp.array([5, 0]), jnp.float32)
    np.testing.assert_array_equal(columns, wide.weight[...].T[jnp.array([5, 0])])


@pytest.mark.parametrize("tied", [False, True])
def test_a_network_whose_weights_have_a_dtype_of_their_own(tied: bool):
    config = dataclasses.replace(SHAPES["tiny"], tie_embeddings=tied)
    bfloat16, float32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
    mixed = Llama.random(config, seed=0, dtype=bfloat16, activation_dtype=float32)
    assert mixed.dtype == float32
    assert {x.dtype for x in jax.tree.leaves(mixed)} == {bfloat16}
    graph, state = nnx.split(Llama.random(config, seed=0, dtype=bfloat16))
    wide = nnx.merge(graph, jax.tree.map(lambda x: x.astype(float32), state))
    for logits in (dense_logits, lambda m, t: tree_logits(m, t, chunk=CHUNK)):
        actual, expected = (logits(m, jnp.asarray(TOKENS)) for m in (mixed, wide))
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


class Int8(nnx.Module):
    """A linear layer of 8-bit weights: one scale per output, as a quantised one has."""

    def __init__(self, dense: Dense):
        weight = np.asarray(dense.weight[...])
        scale = np.abs(weight).max(axis=0) / 127
        self.weight = nnx.Param(jnp.asarray(np.rint(weight / scale), jnp.int8))
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32))
        self.bias = dense.bias
        self.dtype = jnp.dtype("float32")

    def products(self, x, dtype=None):
        products = jnp.dot(x, self.weight[...].astype(x.dtype))
        return (products * self.scale[...][None]).astype(dtype or x.dtype)

    def __call__(self, x):
        products = self.products(x)
        return products if self.bias is None else products + self.bias[...][None]

    def columns(self, index, dtype):
        return self.dense().columns(index, dtype)

    def dense(self) -> Dense:
        """Return the dense layer of the same numbers."""
        weight = self.weight[...].astype(jnp.float32)
        return Dense(weight * self.scale[...][None])


def test_another_linear_layer_may_stand_in_every_place():
    """All weights of a network but norms are behind linear layers, the head too."""
    config = SHAPES["tiny"]
    assert config.tie_embeddings

    def build(change) -> Llama:
        model = Llama.random(config, seed=0, dtype=jnp.float32)
        for layer in model.layers:
            for name in PROJECTIONS:
                setattr(layer, name, change(getattr(layer, name)))
        model.head = change(model.head)
        return model

    quantised = build(Int8)
    sizes = Counter()
    for leaf in jax.tree.leaves(quantised):
        sizes[leaf.dtype.name] += leaf.size
    assert sizes["int8"] > 50 * sizes["float32"]
    expected = dense_logits(build(lambda x: Int8(x).dense()), jnp.asarray(TOKENS))
    exact = dense_logits(build(lambda x: x), jnp.asarray(TOKENS))
    for actual in (
        dense_logits(quantised, jnp.asarray(TOKENS)),
        tree_logits(quantised, TOKENS, chunk=CHUNK),
    ):
        np.testing.assert_array_less(row_errors(actual, expected), 1e-4)
        assert row_errors(actual, exact).max() > 1e-3
