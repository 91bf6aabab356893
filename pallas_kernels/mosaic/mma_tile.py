"""Tiles of queries in the registers of one warpgroup, laid out for `mma.sync`."""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import KernelSpec

ROWS = (16, 32, 64)
"""Sizes of a tile: 16 rows for each of 1, 2 or 4 warps."""


def tile_rows(spec: KernelSpec) -> int:
    """Least size that holds the rows of a tile.

    Four warps side by side need heads of a multiple of 32 elements.
    """
    smallest = 16 if spec.head_dim % 32 == 0 else 32
    used = max(spec.half_queries * spec.group, smallest)
    return next(rows for rows in ROWS if rows >= used)


@dataclasses.dataclass(frozen=True)
class MmaTile:
    """Layouts of a tile of rows and of what it is multiplied with.

    Attributes:
        rows: 16, 32 or 64; fewer rows have more warps side by side over the columns.
        dtype: of the operands.
    """

    rows: int
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

    @property
    def row(self):
        """Layout of one value per row."""
        return self.layout.reduce(1)

    @property
    def column(self):
        """Layout of one value per column."""
        return self.layout.reduce(0)

    def full(self, columns: int, value: float):
        """[rows, columns] float32."""
        filled = jnp.full((self.rows, columns), value, jnp.float32)
        return plgpu.layout_cast(filled, self.layout)

    def full_row(self, value: float):
        """[rows] float32."""
        filled = jnp.full((self.rows,), value, jnp.float32)
        return plgpu.layout_cast(filled, self.row)

    def across_rows(self, x, columns: int):
        """[rows] to [rows, columns], one value per row."""
        x = lax.broadcast_in_dim(x, (self.rows, columns), [0])
        return plgpu.layout_cast(x, self.layout)

    def across_columns(self, x):
        """[columns] to [rows, columns], one value per column."""
        x = lax.broadcast_in_dim(x, (self.rows, *x.shape), [1])
        return plgpu.layout_cast(x, self.layout)

    def finite_share(self, out, share):
        """`out * share` by row, and zeros where the share is 0, whatever `out` holds.

        Rows that see nothing may have multiplied garbage of a page by 0.
        """
        share = self.across_rows(share, out.shape[1])
        return jnp.where(share > 0.0, out * share, 0.0)

    def _parametrise(self, layout):
        return layout(jnp.dtype(self.dtype), m_warps=self.rows // 16)
