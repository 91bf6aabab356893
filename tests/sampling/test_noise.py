import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p

from deft_jax.sampling.noise import (
    ROOT_KEY,
    child_key,
    child_key_on_host,
    exponential,
    threefry2x32,
)

KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
"""Key, counter and words of the authors' own known answers (Random123)."""


def words(first: int, second: int) -> tuple[jax.Array, jax.Array]:
    return jnp.uint32(first), jnp.uint32(second)


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_threefry_gives_its_authors_answers(key, counter, expected):
    found = jax.jit(threefry2x32)(words(*key), words(*counter))
    assert tuple(int(word) for word in found) == expected


def test_threefry_is_that_of_jax():
    random = np.random.default_rng(0).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    k0, k1, c0, c1 = map(jnp.asarray, random)
    found = threefry2x32((k0, k1), (c0, c1))
    expected = threefry2x32_p.bind(k0, k1, c0, c1)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_noise_does_not_depend_on_jaxs_default_generator():
    arguments = (*words(3, 4), jnp.int32(5), jnp.arange(9, dtype=jnp.uint32))
    expected = exponential(*arguments)
    for name, value in [
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
    ]:
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            np.testing.assert_array_equal(exponential(*arguments), expected)
        finally:
            jax.config.update(name, before)


def test_noise_is_exponential_and_finite():
    number = jnp.arange(200_000, dtype=jnp.uint32)
    noise = np.sort(exponential(*words(1, 2), jnp.int32(3), number))
    assert np.all(noise > 0) and np.all(np.isfinite(noise))
    below = 1 - np.exp(-noise.astype(np.float64))
    largest_gap = np.abs(below - np.arange(1, noise.size + 1) / noise.size).max()
    # Kolmogorov and Smirnov: 1 of 10 000 exceeds this.
    assert largest_gap < 2.23 / noise.size**0.5


def test_the_smallest_noise_is_not_rounded_to_steps():
    """Of 200 000 draws the smallest 1 000 are all different, which 24 bits were not."""
    number = jnp.arange(200_000, dtype=jnp.uint32)
    noise = np.sort(exponential(*words(1, 2), jnp.int32(3), number))[:1000]
    assert len(np.unique(noise)) == 1000


def test_each_name_has_its_own_noise():
    names = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)]
    noise = {
        float(exponential(*words(seed, key), jnp.int32(position), jnp.uint32(number)))
        for seed, key, position, number in names
    }
    assert len(noise) == len(names)


def test_siblings_and_generations_have_keys_of_their_own():
    number = jnp.arange(2000, dtype=jnp.int32)
    children = np.asarray(child_key(jnp.uint32(ROOT_KEY), number))
    assert len(set(children.tolist()) | {ROOT_KEY}) == 2001
    for parent in children[:50]:
        below = np.asarray(child_key(jnp.uint32(parent), number))
        assert len(set(below.tolist())) == 2000
    deep, keys = jnp.uint32(ROOT_KEY), {ROOT_KEY}
    for _ in range(1000):
        deep = child_key(deep, jnp.int32(0))
        keys.add(int(deep))
    assert len(keys) == 1001


def test_keys_stay_the_same_from_release_to_release():
    keys = child_key(jnp.uint32(ROOT_KEY), jnp.arange(3, dtype=jnp.int32))
    below = child_key(keys, jnp.int32(1))
    assert keys.tolist() == [804215951, 2726825882, 664193924]
    assert below.tolist() == [4249338449, 3792881548, 572156427]


def test_the_host_makes_the_same_keys():
    random = np.random.default_rng(3)
    parents = random.integers(0, 2**32, 1000, dtype=np.uint32)
    parents[:3] = ROOT_KEY, 2**32 - 1, 2**31
    numbers = random.integers(0, 2**31, 1000, dtype=np.int32)
    numbers[:3] = 0, 2**31 - 1, 1
    keys = np.asarray(child_key(jnp.asarray(parents), jnp.asarray(numbers)))
    pairs = zip(parents.tolist(), numbers.tolist(), strict=True)
    assert [child_key_on_host(*pair) for pair in pairs] == keys.tolist()
