"""Quantised blocks decoded as columns equal what the `gguf` package decodes."""

import gguf
import numpy as np
import pytest

from deft_jax.models.checkpoints.gguf_blocks import DECODERS, BlockMatrix

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", DECODERS)
def test_columns_equal_rows_of_the_package_bit_for_bit(kind: KINDS):
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    data = np.random.default_rng(0).integers(0, 256, (70, 3, block_bytes), np.uint8)
    data[..., 1] &= 0xFB  # A scale, or an offset, of the largest exponent is no number.
    data[..., 3] &= 0xFB
    data = data.reshape(70, -1)
    matrix = BlockMatrix.wrap(data, kind)
    assert matrix is not None and len(matrix) == 70
    expected = gguf.quants.dequantize(data, kind)
    for first, last in ((0, 70), (64, 192), (3, 4)):
        columns = matrix.transposed(first, last)
        np.testing.assert_array_equal(columns.T, expected[first:last])
        assert columns.flags.c_contiguous


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.Q6_K, KINDS.Q5_0])
def test_other_types_are_left_to_the_package(kind: KINDS):
    assert BlockMatrix.wrap(np.zeros((2, 210), np.uint8), kind) is None


def test_vectors_are_left_to_the_package():
    assert BlockMatrix.wrap(np.zeros(34, np.uint8), KINDS.Q8_0) is None
