"""A GGUF file opened quickly: its metadata and where its tensors lie."""

import struct
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
from gguf.gguf_reader import ReaderField, ReaderTensor

from deft_jax.errors import DeftError

from ..config.fields import reason


class GGUFFile(gguf.GGUFReader):
    """A `gguf.GGUFReader` that decodes an array of metadata in one pass.

    The package makes two numpy views for every string; a vocabulary has 100,000 of
    them, which is 2 seconds at every start. It also reads past the end of a file that
    was cut short; here that is an error.

    Attributes:
        path: the file.
        metadata: key to number, text or list of them.
        tensors_by_name: GGUF name to the tensor, its bytes memory-mapped.
    """

    metadata: dict[str, object]
    tensors_by_name: dict[str, ReaderTensor]

    def __init__(self, path: Path) -> None:
        """Open a file and read its metadata.

        Raises:
            DeftError: the file cannot be read, is no GGUF file, or is damaged.
        """
        self.path = path
        _check_start(path)
        try:
            super().__init__(path)
            self.metadata = {key: _value(field) for key, field in self.fields.items()}
        except DeftError:
            raise
        except (ValueError, LookupError, OverflowError) as error:
            raise DeftError(
                f"{path}: damaged or unknown GGUF: {reason(error)}"
            ) from error
        self.tensors_by_name = {tensor.name: tensor for tensor in self.tensors}

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: None | Literal["I", "S", "<"] = None,
    ) -> npt.NDArray[Any]:
        self._check_end(offset + int(count) * np.dtype(dtype).itemsize)
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[gguf.GGUFValueType]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        raw_item = self._get(orig_offs, np.uint32)
        length = self._get(orig_offs + 4, np.uint64)
        start = orig_offs + 12
        item = gguf.GGUFValueType(int(raw_item[0]))
        if item == gguf.GGUFValueType.STRING:
            items, end = self._strings(start, int(length[0]))
        else:
            items = self._get(start, self.gguf_scalar_to_np[item], int(length[0]))
            end = start + items.nbytes
        types = [gguf.GGUFValueType.ARRAY, item]
        return end - orig_offs, [raw_item, length, items], [2], types

    def _strings(self, start: int, count: int) -> tuple[npt.NDArray[Any], int]:
        data = memoryview(self.data)
        read_length = struct.Struct("<Q")
        strings: list[str] = []
        for _ in range(count):
            self._check_end(start + 8)
            end = start + 8 + read_length.unpack_from(data, start)[0]
            self._check_end(end)
            strings.append(str(data[start + 8 : end], "utf-8"))
            start = end
        return np.array(strings, dtype=object), start

    def _check_end(self, end: int) -> None:
        if end > self.data.size:
            raise DeftError(
                f"{self.path}: cut short: expected at least {end} bytes,"
                f" got {self.data.size}; download it again"
            )


def _check_start(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic, version = file.read(4), file.read(4)
    except OSError as error:
        raise DeftError(f"{path}: cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise DeftError(
            f"{path}: not GGUF: expected to start with b'GGUF', got {magic!r};"
            " for safetensors give the folder that holds them"
        )
    if version[:2] == b"\0\0":
        raise DeftError(f"{path}: expected little-endian GGUF, got big-endian")


def _value(field: ReaderField) -> object:
    if field.types[:1] == [gguf.GGUFValueType.ARRAY]:
        return field.parts[-1].tolist()
    return field.contents()
