import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.kv.pool import LayerKV, create_pool, write

LAYERS, PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM, ROWS = 3, 5, 2, 4, 8, 6

jitted_write = jax.jit(write)


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_layer():
    shape = (PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM)
    return LayerKV(k=jnp.array(normal(shape, 0)), v=jnp.array(normal(shape, 1)))


def test_a_new_pool_is_one_zero_buffer_per_layer():
    pool = create_pool(LAYERS, PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM, jnp.bfloat16)
    assert len(pool) == LAYERS
    arrays = jax.tree.leaves(pool)
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == 2 * LAYERS
    for array in arrays:
        assert array.shape == (PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM)
        assert array.dtype == jnp.bfloat16
        assert not np.any(array)


@given(st.lists(st.integers(0, PAGES * PAGE_SIZE), min_size=ROWS, max_size=ROWS))
def test_rows_are_written_to_their_slots_and_nothing_else(places):
    places = [p for i, p in enumerate(places) if p not in places[:i]]
    idle = PAGES * PAGE_SIZE
    page, slot = np.divmod(
        np.array(places + [idle] * (ROWS - len(places)), np.int32), PAGE_SIZE
    )
    k, v = normal((2, ROWS, KV_HEADS, HEAD_DIM), 2)
    layer = random_layer()
    expected_k, expected_v = np.array(layer.k), np.array(layer.v)
    for row in np.flatnonzero(page < PAGES):
        expected_k[page[row], :, slot[row]] = k[row]
        expected_v[page[row], :, slot[row]] = v[row]
    written = jitted_write(layer, page, slot, k, v)
    np.testing.assert_array_equal(written.k, expected_k)
    np.testing.assert_array_equal(written.v, expected_v)


def test_rows_are_cast_to_the_type_of_the_pool():
    (layer,) = create_pool(1, PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM, jnp.bfloat16)
    rows = jnp.full((1, KV_HEADS, HEAD_DIM), 1.001, jnp.float32)
    at = jnp.array([2], jnp.int32)
    written = jitted_write(layer, at, at, rows, -rows)
    assert written.k.dtype == written.v.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written.k[2, :, 2], rows[0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(written.v[2, :, 2], -rows[0].astype(jnp.bfloat16))


def test_a_donated_layer_is_written_in_place():
    layer = random_layer()
    pointers = [array.unsafe_buffer_pointer() for array in (layer.k, layer.v)]
    rows = jnp.ones((2, KV_HEADS, HEAD_DIM))
    at = jnp.array([0, 1], jnp.int32)
    written = jax.jit(write, donate_argnums=0)(layer, at, at, rows, rows)
    assert [x.unsafe_buffer_pointer() for x in (written.k, written.v)] == pointers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": np.zeros(2, np.float32)}, "page must hold integers, got float32"),
        ({"slot": np.zeros(2, bool)}, "slot must hold integers, got bool"),
        (
            {"k": np.zeros((2, KV_HEADS + 1, HEAD_DIM), np.float32)},
            f"k and v must be (2, {KV_HEADS}, {HEAD_DIM}) and slot (2,) for this pool",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_line(change, message):
    at, rows = np.arange(2), normal((2, KV_HEADS, HEAD_DIM), 0)
    arguments = {"page": at, "slot": at, "k": rows, "v": rows} | change
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        write(random_layer(), **arguments)
    assert "\n" not in str(raised.value)
