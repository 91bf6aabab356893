"""How far an implementation of the op may be from its oracle."""

import jax
import numpy as np

TOLERANCE = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}
"""Largest relative error of a row, by the dtype of q, k and v."""


def row_errors(actual: jax.Array | np.ndarray, expected: jax.Array | np.ndarray):
    """Return [...] float64, norm of each last-axis row's error over the row's."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape
    size = np.linalg.norm(expected, axis=-1)
    error = np.linalg.norm(actual - expected, axis=-1)
    return error / np.where(size == 0, 1.0, size)


def assert_attention_close(actual, expected, dtype: str = "float32") -> None:
    """Assert that two pairs of out [..., D] and lse [...] agree, blind rows exactly.

    A difference of logs is a relative error, so lse is held to the same tolerance.
    """
    (out, lse), (expected_out, expected_lse) = actual, expected
    lse, expected_lse = np.asarray(lse), np.asarray(expected_lse)
    blind = np.isneginf(expected_lse)
    np.testing.assert_array_equal(np.isneginf(lse), blind)
    np.testing.assert_array_equal(np.asarray(out, np.float64)[blind], 0.0)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_array_less(row_errors(out, expected_out), tolerance)
    np.testing.assert_allclose(
        lse[~blind], expected_lse[~blind], rtol=tolerance, atol=tolerance
    )
