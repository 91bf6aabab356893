"""Random numbers with names: the same name gives the same number in every batch.

The name of a number is the request's seed, the key of the branch, the position on its
path, and what it is for (a token, or a block of tokens). Nothing else takes part: not
the row, not the number of rows, not JAX's default generator or its flags. Integers are
the same on every device; floats are up to the device's `log1p`.
"""

import jax
import jax.numpy as jnp

ROOT_KEY = 0
"""Key of the root of every request; the seed tells requests apart."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def child_key(parent: jax.Array, number: jax.Array) -> jax.Array:
    """Return the keys of children from their parents' keys.

    Siblings never share a key: for one parent every number gives another key.

    Args:
        parent: [...] uint32, keys of the parents.
        number: [...] int32, how many children of the parent came before the child.

    Returns:
        [...] uint32.
    """
    return _scrambled(_scrambled(parent + jnp.uint32(1)) + number.astype(jnp.uint32))


def child_key_on_host(parent: int, number: int) -> int:
    """Return what `child_key` does, for one child and in plain integers.

    Args:
        parent: key of the parent, 0 to 2**32 - 1.
        number: how many children of the parent came before the child.
    """
    word = _scrambled_on_host(parent + 1)
    return _scrambled_on_host(word + number)


def exponential(
    seed: jax.Array, key: jax.Array, position: jax.Array, number: jax.Array
) -> jax.Array:
    """Return exponentially distributed numbers of mean 1, finite and above 0.

    The smallest of them decide a race, so that they are the most exact: 64 random bits
    are spread over the floats near 0.

    Args:
        seed: [...] uint32, seed of the request.
        key: [...] uint32, key of the branch.
        position: [...] int32, tokens generated on the path so far.
        number: [...] uint32, what the number is for.

    Returns:
        [...] float32, of the shape that the arguments broadcast to.
    """
    high, low = threefry2x32((seed, key), (position.astype(jnp.uint32), number))
    fine = (low.astype(jnp.float32) + 0.5) * 2.0**-64
    uniform = high.astype(jnp.float32) * 2.0**-32 + fine
    # Rounded up to 1, it would be infinite.
    return -jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24))


def threefry2x32(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return two random words per counter (Salmon et al., 2011; 20 rounds).

    JAX's own is a loop of several kernels and needs its keys spread out in memory; this
    is elementwise, so that the compiler makes one kernel of it and what reads it.

    Args:
        key: two [...] uint32 words.
        counter: two [...] uint32 words.
    """
    words = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = counter[0] + words[0], counter[1] + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << rotation | y >> (32 - rotation))
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def _scrambled(word: jax.Array) -> jax.Array:
    """Return words whose every bit depends on all bits; no two words give the same.

    These are the last steps of MurmurHash3. Each can be undone: a shift that is xored
    in, and a product with an odd number.
    """
    word = (word ^ word >> 16) * jnp.uint32(0x85EBCA6B)
    word = (word ^ word >> 13) * jnp.uint32(0xC2B2AE35)
    return word ^ word >> 16


def _scrambled_on_host(word: int) -> int:
    """Return what `_scrambled` does to one word, of which the low 32 bits count."""
    word &= 0xFFFFFFFF
    word = (word ^ word >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    word = (word ^ word >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return word ^ word >> 16
