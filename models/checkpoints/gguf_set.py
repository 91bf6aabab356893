"""A model in GGUF, in one file or split into a set of them.

Tools write the parts of a set as `name-00001-of-00003.gguf` and so on. The first part
holds the metadata; every part holds some of the tensors, its own number from 0
(`split.no`), the number of parts (`split.count`) and of all tensors
(`split.tensors.count`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.gguf_reader import ReaderTensor

from deft_jax.errors import DeftError

from ..config.fields import shown
from .gguf_file import GGUFFile

_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class GGUFSet:
    """What the files of one model hold together.

    Attributes:
        metadata: key to number, text or list of them, from the first part.
        tensors: GGUF name to the tensor, its bytes memory-mapped.
        paths: GGUF name to the file that holds the tensor.
    """

    metadata: Mapping[str, object]
    tensors: Mapping[str, ReaderTensor]
    paths: Mapping[str, Path]


def open_gguf_set(path: Path) -> GGUFSet:
    """Open all files of a model, given any one of them.

    Args:
        path: a whole GGUF file, or a part of a set.

    Raises:
        DeftError: a file cannot be read or is damaged, or a part is missing or does
            not belong to the others.
    """
    file = GGUFFile(path)
    parts = [file]
    count = _split_number(file, "split.count", 1)
    if count > 1:
        number = _split_number(file, "split.no", 0)
        paths = _part_paths(path, number, count)
        parts = [
            file if index == number else GGUFFile(paths[index])
            for index in range(count)
        ]
        for index, part in enumerate(parts):
            _check_part(part, index, count)
    tensors: dict[str, ReaderTensor] = {}
    paths_by_name: dict[str, Path] = {}
    for part in parts:
        for name, tensor in part.tensors_by_name.items():
            if name in tensors:
                raise DeftError(
                    f"{part.path}: tensor {shown(name)} is also in"
                    f" {paths_by_name[name].name}; expected each in one part"
                )
            tensors[name], paths_by_name[name] = tensor, part.path
    expected = _split_number(file, "split.tensors.count", len(tensors))
    if count > 1 and expected != len(tensors):
        raise DeftError(
            f"{path}: expected {expected} tensors in its {count} parts,"
            f" got {len(tensors)}; download them again"
        )
    return GGUFSet(metadata=parts[0].metadata, tensors=tensors, paths=paths_by_name)


def _split_number(file: GGUFFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise DeftError(f"{file.path}: {key} is {value!r}; expected a number of parts")
    return value


def _part_paths(path: Path, number: int, count: int) -> list[Path]:
    """Return where the parts of a set lie, checked to exist."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None or (int(match[2]), int(match[3])) != (number + 1, count):
        raise DeftError(
            f"{path}: it is part {number + 1} of {count}; expected a name that ends in"
            f" -{number + 1:05}-of-{count:05}.gguf, beside the other parts"
        )
    paths = []
    for index in range(count):
        part = path.with_name(f"{match[1]}-{index + 1:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise DeftError(
                f"{path}: part {index + 1} of {count} is missing: expected {part.name}"
                " in the same folder"
            )
        paths.append(part)
    return paths


def _check_part(part: GGUFFile, index: int, count: int) -> None:
    found = part.metadata.get("split.no"), part.metadata.get("split.count")
    if found != (index, count):
        raise DeftError(
            f"{part.path}: expected split.no {index} and split.count {count},"
            f" got {found[0]} and {found[1]}; download it again"
        )
