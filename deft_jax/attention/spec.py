"""What attention computes, and the sizes of its heads and work lists."""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.attention.checks import whole_number
from deft_jax.errors import DeftError

DTYPES = ("float32", "bfloat16", "float16")
"""Of queries, and of keys and values."""


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads of one attention layer.

    Attributes:
        num_q: `H`, query heads.
        num_kv: `K`, KV heads.
        head_dim: `D`.
    """

    num_q: int
    num_kv: int
    head_dim: int

    @property
    def group(self) -> int:
        """`G`, query heads that share a KV head."""
        return self.num_q // self.num_kv


@dataclasses.dataclass(frozen=True)
class Logits:
    """How products of queries and keys become the numbers of a softmax.

    Attributes:
        scale: factor of the products of queries and keys.
        window: a query sees only tokens less than this many positions back along its
            path, itself counted; None for all.
        soft_cap: bound of `soft_cap * tanh(logits / soft_cap)`, or None for no bound.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None

    @classmethod
    def plain(cls, head_dim: int) -> "Logits":
        """Return softmax attention with the usual scale: no window and no cap."""
        return cls(scale=1 / math.sqrt(head_dim))

    @classmethod
    def create(cls, head_dim: int, scale: Any, window: Any, soft_cap: Any) -> "Logits":
        """Check options that callers hand over; a scale of None is the usual one.

        Raises:
            ValueError: an option is no number, or out of its range.
        """
        for name, value in (("scale", scale), ("soft_cap", soft_cap)):
            if value is None:
                continue
            if not _is_number(value):
                raise ValueError(
                    f"{name} must be a number above 0 or None, got {value!r}"
                )
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        return cls(
            scale=1 / math.sqrt(head_dim) if scale is None else float(scale),
            window=None if window is None else whole_number("window", window),
            soft_cap=None if soft_cap is None else float(soft_cap),
        )

    def __call__(self, products: jax.Array) -> jax.Array:
        """Return the logits of float32 products of queries and keys, any shape."""
        logits = products * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
        return logits


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The attention of one kind of layer; layers of one kind share a plan.

    Attributes:
        heads: heads of queries, keys and values.
        dtype: name of the queries' dtype, one of `DTYPES`.
        logits: what becomes of the products of queries and keys.
        kv_dtype: name of the dtype that keys and values are stored in.
    """

    heads: Heads
    dtype: str
    logits: Logits
    kv_dtype: str

    @classmethod
    def create(
        cls,
        heads: Heads,
        dtype: jax.typing.DTypeLike,
        *,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        kv_dtype: jax.typing.DTypeLike | None = None,
    ) -> "AttentionSpec":
        """Check the options and return the spec that they describe.

        Args:
            heads: heads of queries, keys and values.
            dtype: dtype of the queries: float32, bfloat16 or float16.
            scale: factor of the logits, above 0; `D ** -0.5` by default.
            window: a query sees only tokens less than this many positions back along
                its path, itself counted; None for all.
            soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`; None for no
                bound.
            kv_dtype: dtype that keys and values are stored in, by default the queries';
                any of the three under float32 queries.

        Raises:
            ValueError: an option is of the wrong type or out of its range.
        """
        if heads.num_kv < 1 or heads.num_q < 1 or heads.num_q % heads.num_kv:
            raise ValueError(
                "query heads must be a multiple of KV heads, got "
                f"{heads.num_q} and {heads.num_kv}"
            )
        name = _dtype_name("dtype", dtype)
        spec = cls(
            heads=heads,
            dtype=name,
            logits=Logits.create(heads.head_dim, scale, window, soft_cap),
            kv_dtype=name,
        )
        return spec if kv_dtype is None else spec.with_kv_dtype(kv_dtype)

    def with_kv_dtype(self, kv_dtype: jax.typing.DTypeLike) -> "AttentionSpec":
        """Return the spec for keys and values that are stored in another dtype.

        Raises:
            DeftError: the queries' dtype cannot hold what is stored.
        """
        name = _dtype_name("kv_dtype", kv_dtype)
        if not may_store(self.dtype, name):
            raise DeftError(
                f"kv_dtype must be {self.dtype}, the dtype of the activations, or the "
                f"activations be float32, got {name}"
            )
        return dataclasses.replace(self, kv_dtype=name)

    def queries(self, num_queries: int) -> jax.ShapeDtypeStruct:
        """Return the shape of the queries of a step, [Q, H, D]."""
        shape = num_queries, self.heads.num_q, self.heads.head_dim
        return jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype))

    def pages(self, num_pages: int, page_size: int) -> jax.ShapeDtypeStruct:
        """Return the shape of a layer's keys and of its values, [M, K, P, D]."""
        shape = num_pages, self.heads.num_kv, page_size, self.heads.head_dim
        return jax.ShapeDtypeStruct(shape, jnp.dtype(self.kv_dtype))


def may_store(dtype: jax.typing.DTypeLike, kv_dtype: jax.typing.DTypeLike) -> bool:
    """Return whether attention may read KV of one dtype under queries of another.

    float32 holds whatever narrower types do, so that reading changes no number.
    """
    same = jnp.dtype(dtype) == jnp.dtype(kv_dtype)
    wide = jnp.dtype(dtype) == jnp.float32
    return same or (wide and jnp.dtype(kv_dtype).name in DTYPES)


def _dtype_name(name: str, dtype: jax.typing.DTypeLike) -> str:
    """Return the name of a dtype that attention takes.

    Raises:
        ValueError: it is none of `DTYPES`.
    """
    try:
        found = jnp.dtype(dtype).name
    except TypeError:
        found = repr(dtype)
    if found not in DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {found}")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a schedule: the part of a `KernelSpec` that work lists depend on.

    Attributes:
        half_queries: queries per half of a tile.
        halves: 2 if different warpgroups own the halves of a tile, 1 if it has none.
        unit_tokens: `U`, tokens of a unit; divides the page size.
        block_tokens: tokens of a block, a multiple of `unit_tokens`.
        num_kv_heads: `K`.
        num_workers: `W`, workers that divide the work among them.
    """

    half_queries: int
    halves: int
    unit_tokens: int
    block_tokens: int
    num_kv_heads: int
    num_workers: int

    @property
    def tile_queries(self) -> int:
        """Queries per tile."""
        return self.half_queries * self.halves


HEADS = {
    "smollm2_135m": Heads(9, 3, 64),
    "phi2": Heads(32, 32, 80),
    "phi3_mini": Heads(32, 32, 96),
    "llama3_8b": Heads(32, 8, 128),
    "qwen3_235b_a22b": Heads(64, 4, 128),
    "gemma_2b": Heads(8, 1, 256),
}
