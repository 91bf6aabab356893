"""Matrix tiles in the registers of one warpgroup, and their layouts."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import TILE_ROWS, KernelSpec

MMA_ROWS = (16, 32, 64)
"""Rows that a tile for `mma.sync` may have: 16 for each of 1, 2 or 4 warps."""


def tile_rows(spec: KernelSpec) -> int:
    """Return the least number of rows for `mma.sync` that holds a tile's queries.

    Four warps side by side need heads of a multiple of 32 elements.
    """
    smallest = 16 if spec.head_dim % 32 == 0 else 32
    used = max(spec.half_queries * spec.group, smallest)
    return next(rows for rows in MMA_ROWS if rows >= used)


@dataclasses.dataclass(frozen=True)
class Tile(abc.ABC):
    """A tile of rows and any number of columns, with the layout of a product.

    Attributes:
        rows: rows of the tile; each is a query and one of its heads.
    """

    rows: int

    @property
    @abc.abstractmethod
    def layout(self) -> Any:
        """Layout of a product and of everything of its shape."""

    @property
    def row(self):
        """Layout of one value per row."""
        return self.layout.reduce(1)

    @property
    def column(self):
        """Layout of one value per column."""
        return self.layout.reduce(0)

    def full(self, columns: int, value: float):
        """Return [rows, columns] float32 of one value."""
        filled = jnp.full((self.rows, columns), value, jnp.float32)
        return plgpu.layout_cast(filled, self.layout)

    def full_row(self, value: float):
        """Return [rows] float32 of one value."""
        filled = jnp.full((self.rows,), value, jnp.float32)
        return plgpu.layout_cast(filled, self.row)

    def across_rows(self, x, columns: int):
        """Return x [rows] as [rows, columns], one value per row."""
        x = lax.broadcast_in_dim(x, (self.rows, columns), [0])
        return plgpu.layout_cast(x, self.layout)

    def across_columns(self, x):
        """Return x [columns] as [rows, columns], one value per column."""
        x = lax.broadcast_in_dim(x, (self.rows, *x.shape), [1])
        return plgpu.layout_cast(x, self.layout)

    def row_numbers(self):
        """Return [rows] int32: 0, 1, 2, .."""
        return plgpu.broadcasted_iota(jnp.int32, (self.rows,), 0, layout=self.row)

    def row_numbers_across(self, columns: int):
        """Return [rows, columns] int32, the number of its row everywhere."""
        shape = self.rows, columns
        return plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=self.layout)


class WgmmaTile(Tile):
    """The tile of `wgmma`: 64 rows."""

    def __init__(self):
        """Make a tile of 64 rows."""
        super().__init__(TILE_ROWS)

    @property
    def layout(self):
        """Layout of a product and of everything of its shape."""
        return plgpu.Layout.WGMMA


@dataclasses.dataclass(frozen=True)
class MmaTile(Tile):
    """The tile of `mma.sync`, and the layouts of what is multiplied.

    Attributes:
        rows: 16, 32 or 64; fewer rows have more warps side by side over the columns.
        dtype: name of the operands' dtype.
    """

    dtype: str

    @property
    def left(self):
        """Layout of the left operand."""
        return self._parametrise(plgpu.Layout.MMA_LHS)

    @property
    def right(self):
        """Layout of the right operand."""
        return self._parametrise(plgpu.Layout.MMA_RHS)

    @property
    def layout(self):
        """Layout of a product and of everything of its shape."""
        return self._parametrise(plgpu.Layout.MMA_ACC)

    def _parametrise(self, layout):
        return layout(jnp.dtype(self.dtype), m_warps=self.rows // 16)
