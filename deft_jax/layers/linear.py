"""Products with weights: every one of a network goes through a linear layer.

What a layer hands out is a product in the dtype that its reader wants. How the weights
are stored is the linear layer's own affair: `Dense` has them as one array of any float
dtype, and what has them quantised or in shards has the same members.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from deft_jax.attention.device import device_of


class Linear(Protocol):
    """A matrix of weights as a network uses it; a pytree."""

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the activations that suit the weights best."""
        ...

    @property
    def bias(self) -> nnx.Param | None:
        """[F], added to the products; None for no bias."""
        ...

    def products(
        self, x: jax.Array, dtype: jax.typing.DTypeLike | None = None
    ) -> jax.Array:
        """Return the products [Q, F] of activations [Q, E], without the bias.

        Args:
            x: [Q, E], activations of any float dtype.
            dtype: dtype of the sums; by default that of the activations.
        """
        ...

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the products [Q, F] with the bias, in the dtype of x [Q, E]."""
        ...

    def columns(self, index: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Return the weights [Q, E] of the outputs [Q] int32."""
        ...


class Dense(nnx.Module):
    """A linear layer whose weights are one array.

    The dtype of the weights is their own: products are taken in that of the
    activations, which the weights are converted to if it is another one.

    Attributes:
        weight: [E, F].
        bias: [F], added to the products; None for no bias.
    """

    def __init__(self, weight: jax.Array, bias: jax.Array | None = None):
        """Wrap arrays, which are not copied.

        Args:
            weight: [E, F], any float dtype.
            bias: [F], any float dtype; None for no bias.
        """
        self.weight = nnx.Param(weight)
        self.bias = None if bias is None else nnx.Param(bias)

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the weights."""
        return self.weight.dtype

    def products(
        self, x: jax.Array, dtype: jax.typing.DTypeLike | None = None
    ) -> jax.Array:
        """Return the products [Q, F] of activations [Q, E], without the bias.

        Args:
            x: [Q, E], activations of any float dtype.
            dtype: dtype of the sums; by default that of the activations.
        """
        weight = self.weight[...].astype(x.dtype)
        if not _converts_weights(x):
            return jnp.dot(x, weight, preferred_element_type=dtype)
        return jnp.dot(doubled(x), weight, preferred_element_type=dtype)[:1]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the products [Q, F] with the bias, in the dtype of x [Q, E]."""
        products = self.products(x)
        if self.bias is None:
            return products
        return products + self.bias[...].astype(products.dtype)[None]

    def columns(self, index: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Return the weights [Q, E] of the outputs [Q] int32."""
        return self.weight[...][:, index].T.astype(dtype)


def _converts_weights(x: jax.Array) -> bool:
    """Return whether XLA would convert a whole weight before a product with x [Q, E].

    It computes a product of a matrix and a single row in float32, and on a CPU that
    takes bfloat16 weights through a copy of twice their size, in every step. Two rows
    are multiplied as they are.
    """
    is_row = x.shape[0] == 1 and x.dtype == jnp.bfloat16
    return is_row and device_of(x).platform == "cpu"


def doubled(x: jax.Array) -> jax.Array:
    """Return a single row [1, E] twice; several rows as they are."""
    return jnp.concatenate([x, x]) if x.shape[0] == 1 else x
