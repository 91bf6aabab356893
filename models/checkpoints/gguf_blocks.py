"""Quantised GGUF matrices, decoded a few rows at a time in transposed order.

The network wants matrices [input, output] and GGUF stores rows of an output. Moving the
quantised bytes is four to eight times less work than moving the decoded numbers, and a
scale per block then multiplies whole vectors of rows instead of 32 numbers. The values
are those of `gguf.quants.dequantize`, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

BLOCK_VALUES = 32
"""Values of a block, which share their scale and their offset."""


@dataclass(frozen=True)
class BlockMatrix:
    """A quantised matrix of R rows and E columns.

    Attributes:
        blocks: [R, E / 32, bytes of a block] uint8, memory-mapped.
        kind: type of quantisation, one of `DECODERS`.
    """

    blocks: np.ndarray
    kind: GGMLQuantizationType

    @classmethod
    def wrap(cls, rows: np.ndarray, kind: GGMLQuantizationType) -> "BlockMatrix | None":
        """Return the matrix of rows of bytes [R, ...], or `None` for other types."""
        if kind not in DECODERS or rows.ndim != 2:
            return None
        block_bytes = GGML_QUANT_SIZES[kind][1]
        return cls(rows.reshape(len(rows), -1, block_bytes), kind)

    def __len__(self) -> int:
        """Return R."""
        return len(self.blocks)

    def transposed(self, first: int, last: int) -> np.ndarray:
        """Return rows `first` to `last` as columns: [E, last - first] float32."""
        blocks = self.blocks[first:last]
        out = np.empty((blocks.shape[1], BLOCK_VALUES, len(blocks)), np.float32)
        DECODERS[self.kind](blocks, out)
        return out.reshape(-1, len(blocks))


def _decode_q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    # 2 bytes of scale, 32 signed bytes.
    out[...] = blocks[..., 2:].view(np.int8).transpose(1, 2, 0)
    out *= _halves(blocks, 0)


def _decode_q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    # 2 bytes of scale, 16 bytes of two values each.
    _unpack(blocks[..., 2:], out)
    out -= 8
    out *= _halves(blocks, 0)


def _decode_q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    # 2 bytes of scale, 2 bytes of offset, 16 bytes of two values each.
    _unpack(blocks[..., 4:], out)
    out *= _halves(blocks, 0)
    out += _halves(blocks, 2)


DECODERS: dict[GGMLQuantizationType, Callable[[np.ndarray, np.ndarray], None]] = {
    GGMLQuantizationType.Q8_0: _decode_q8_0,
    GGMLQuantizationType.Q4_0: _decode_q4_0,
    GGMLQuantizationType.Q4_1: _decode_q4_1,
}
"""Types that are decoded here; each writes blocks [R, B, ...] to out [B, 32, R]."""


def _unpack(packed: np.ndarray, out: np.ndarray) -> None:
    # Value j of a block is the low half of byte j, value 16 + j its high half.
    pairs = np.ascontiguousarray(packed.transpose(1, 2, 0))
    out[:, :16] = pairs & 15
    out[:, 16:] = pairs >> 4


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    """Return the float16 at a byte of each block [R, B, ...] as [B, 1, R] float32."""
    numbers = np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)
    return np.ascontiguousarray(numbers.transpose(1, 2, 0)).astype(np.float32)
