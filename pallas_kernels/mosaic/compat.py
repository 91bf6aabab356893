"""What differs between the releases of Pallas Mosaic GPU that are supported."""

from jax.experimental.pallas import mosaic_gpu as plgpu

COMPILER_PARAMS = plgpu.CompilerParams(
    approx_math=True,
    # Layouts are all given: inferring them takes up to minutes per kernel.
    lowering_semantics=plgpu.LoweringSemantics.Lane,
)


ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
"""Accumulators of wgmma."""


def store_rows(ref, value) -> None:
    """Store registers to a ref of any alignment; JAX 0.12 has to be told so."""
    if store := getattr(plgpu, "store", None):
        store(ref, value, optimized=False)
    else:
        ref[...] = value


def tile_transforms(head_dim: int, itemsize: int, *, parts: int = 1) -> tuple:
    """Return the layout in shared memory of rows that matrix units read.

    Args:
        head_dim: elements of a row.
        itemsize: bytes of an element.
        parts: number that the tiles of a row must be a multiple of.

    Raises:
        NotImplementedError: rows cannot be divided into a multiple of `parts` tiles.
    """
    size = head_dim * itemsize
    swizzle = next((s for s in (128, 64, 32) if size % (s * parts) == 0), None)
    if swizzle is None:
        raise NotImplementedError(
            f"rows must be a multiple of {32 * parts} bytes, got {size}"
        )
    tile = (8, swizzle // itemsize)
    return (
        plgpu.TilingTransform(tile),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(swizzle),  # pyright: ignore[reportAbstractUsage]
    )
