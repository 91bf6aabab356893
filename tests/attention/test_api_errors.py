"""What the op refuses, whichever implementation is asked for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention.api import tree_attention
from deft_jax.attention.backend import IMPLEMENTATIONS
from deft_jax.attention.grouping import group, group_arrays
from deft_jax.tree.appending import append
from deft_jax.tree.state import Tree

Q, PAGES = (2, 4, 8), (3, 2, 4, 8)
"""Shapes that fit each other: Q, H, D and M, K, P, D."""


@jax.jit
def idle_grouping():
    """Return the grouping of two idle rows over three pages of four tokens."""
    tree = Tree.create(num_nodes=2, num_pages=3, page_size=4)
    idle = jnp.full(2, 2, jnp.int32)
    return group(*append(tree, idle, idle))


def refused(
    message: str,
    *,
    shapes=(Q, PAGES, PAGES),
    dtypes=("float32",) * 3,
    implementation: str | None = None,
    **options,
) -> None:
    """Assert that the op raises a ValueError with just this message."""
    q, k, v = map(jnp.zeros, shapes, dtypes)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tree_attention(
            q, k, v, idle_grouping(), implementation=implementation, **options
        )


NAMES = pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])


@NAMES
@pytest.mark.parametrize(
    ("q", "pages"), [((2, 32), PAGES), (Q, (6, 4, 8)), ((1, *Q), PAGES)]
)
def test_ranks_of_arrays(implementation, q, pages):
    refused(
        "q must be [queries, heads, head_dim] and k_pages [pages, heads, page_size, "
        f"head_dim], got {q} and {pages}",
        shapes=(q, pages, pages),
        implementation=implementation,
    )


@NAMES
def test_keys_and_values_of_two_shapes(implementation):
    refused(
        "k_pages and v_pages must have one shape, got (3, 2, 4, 8) and (3, 2, 4, 9)",
        shapes=(Q, PAGES, (3, 2, 4, 9)),
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 16), (3, 8), (1, 8)])
def test_heads_that_do_not_fit_the_pages(implementation, heads, head_dim):
    refused(
        "q must have the pages' head_dim and a multiple of their heads (8 and 2), got "
        f"{head_dim} and {heads}",
        shapes=((2, heads, head_dim), PAGES, PAGES),
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize(
    ("num_queries", "num_pages", "page_size"), [(5, 3, 4), (2, 4, 4), (2, 3, 8)]
)
def test_grouping_of_another_step(implementation, num_queries, num_pages, page_size):
    pages = (num_pages, 2, page_size, 8)
    refused(
        f"grouping is for 2 queries and pages of (3, 4), got {num_queries} queries and "
        f"{(num_pages, page_size)}",
        shapes=((num_queries, 4, 8), pages, pages),
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize(
    "dtypes",
    [
        ("bfloat16", "float32", "float32"),
        ("float16", "float32", "float32"),
        ("float32", "int8", "int8"),
        ("float32", "bfloat16", "float16"),
        ("bfloat16", "bfloat16", "float32"),
    ],
)
def test_mixed_dtypes(implementation, dtypes):
    q, k, v = dtypes
    refused(
        "q, k_pages and v_pages must share a dtype, or q be float32 over narrower "
        f"k_pages and v_pages, got {q}, {k} and {v}",
        dtypes=dtypes,
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize("dtype", ["int32", "bool", "float8_e4m3fn"])
def test_dtypes_that_no_implementation_takes(implementation, dtype):
    refused(
        f"q must be of dtype float32, bfloat16, float16, got {dtype}",
        dtypes=(dtype,) * 3,
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize("window", [0, -3])
def test_window_without_tokens(implementation, window):
    refused(
        f"window must be at least 1, got {window}",
        window=window,
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize("soft_cap", [0.0, -1.0, float("nan")])
def test_soft_cap_that_bounds_nothing(implementation, soft_cap):
    refused(
        f"soft_cap must be above 0, got {soft_cap}",
        soft_cap=soft_cap,
        implementation=implementation,
    )


@NAMES
@pytest.mark.parametrize("window", [2.5, 2.0, True, "9", float("nan")])
def test_window_that_counts_no_tokens(implementation, window):
    refused(
        f"window must be an integer of at least 1, got {window!r}",
        window=window,
        implementation=implementation,
    )


@pytest.mark.parametrize("window", [np.int64(3), np.uint8(3)])
def test_window_may_be_an_integer_of_numpy(window):
    q, pages = jnp.zeros(Q), jnp.zeros(PAGES)
    out, _ = tree_attention(q, pages, pages, idle_grouping(), window=window)
    np.testing.assert_array_equal(out, 0)


@NAMES
@pytest.mark.parametrize("option", ["scale", "soft_cap"])
@pytest.mark.parametrize("value", ["1", True, 1j])
def test_options_that_are_no_numbers(implementation, option, value):
    refused(
        f"{option} must be a number above 0 or None, got {value!r}",
        implementation=implementation,
        **{option: value},
    )


@NAMES
@pytest.mark.parametrize("scale", [0, -0.5, float("nan")])
def test_scale_of_nothing(implementation, scale):
    refused(
        f"scale must be above 0, got {scale}",
        scale=scale,
        implementation=implementation,
    )


@pytest.mark.parametrize("name", ["triton", "XLA", ""])
def test_unknown_implementation(name):
    refused(
        f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, "
        f"got {name!r}",
        implementation=name,
    )


SLOTS, POSITIONS = np.zeros((3, 4), np.int32), np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slot_first": SLOTS + 0.5}, "slot_first must hold integers, got float32"),
        ({"slot_end": SLOTS > 0}, "slot_end must hold integers, got bool"),
        ({"query_position": [0.0, 1.0]}, "query_position must hold integers, got "),
        ({"num_live": 2.0}, "num_live must hold integers, got float32"),
        ({"num_live": POSITIONS}, "num_live must be one number, got the shape (2,)"),
        ({"tile_queries": 0}, "tile_queries must be at least 1, got 0"),
        ({"tile_queries": 1.5}, "tile_queries must be an integer of at least 1, got 1"),
        ({"slot_end": SLOTS[:2]}, "slot_first, slot_end and slot_position must be "),
    ],
)
def test_arrays_that_describe_no_grouping(arguments, message):
    arrays = {"slot_first": SLOTS, "slot_end": SLOTS, "slot_position": SLOTS}
    arrays |= {"query_position": POSITIONS, "num_live": 2}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        group_arrays(**arrays | arguments)
    assert "\n" not in str(raised.value)
