"""GGUF split into parts: any part opens the set, and a set that is not whole fails."""

import dataclasses
import shutil
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.checkpoint import check_shapes, open_checkpoint
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.load import load_model
from tests.support.models.loadable_checkpoints import mild_weights, write_loadable_gguf

CONFIG = dataclasses.replace(SHAPES["tiny"], tie_embeddings=False)
PARTS = [f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with a model in one file and in three."""
    folder = tmp_path_factory.mktemp("split")
    weights = mild_weights(CONFIG)
    write_loadable_gguf(folder / "whole.gguf", CONFIG, weights)
    write_loadable_gguf(folder / "model.gguf", CONFIG, weights, split_max_tensors=8)
    assert sorted(path.name for path in folder.iterdir()) == [*PARTS, "whole.gguf"]
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Copy the parts for a test that damages them."""
    return Path(shutil.copytree(written, tmp_path / "set"))


@pytest.mark.parametrize("part", PARTS)
def test_any_part_loads_the_whole_set(written: Path, part: str):
    expected, tokenizer = load_model(written / "whole.gguf")
    model, same_tokenizer = load_model(written / part)
    assert model.config == expected.config
    assert same_tokenizer.vocab_size == tokenizer.vocab_size
    for one, other in zip(*map(jax.tree.leaves, (model, expected)), strict=True):
        np.testing.assert_array_equal(one, other)


def rename(folder: Path) -> None:
    """Take the pattern out of a part's name."""
    (folder / PARTS[1]).rename(folder / "second.gguf")


def swap(folder: Path) -> None:
    """Put the second part in the place of the third."""
    shutil.copy(folder / PARTS[1], folder / PARTS[2])


def put_whole(folder: Path) -> None:
    """Put a file that is no part in the place of the third."""
    shutil.copy(folder / "whole.gguf", folder / PARTS[2])


def rewrite(path: Path, number: int, total: int, tensors: list[str]) -> None:
    """Write a part of 3 with tensors of one value."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 3)
    writer.add_int32("split.tensors.count", total)
    for name in tensors:
        writer.add_tensor(name, np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def lose_tensors(folder: Path) -> None:
    """Write a third part that has one tensor instead of its own."""
    rewrite(folder / PARTS[2], 2, 21, ["other"])


def repeat_tensor(folder: Path) -> None:
    """Write a third part that has a tensor of the first."""
    rewrite(folder / PARTS[2], 2, 21, ["token_embd.weight"])


@pytest.mark.parametrize(
    ("damage", "opened", "message"),
    [
        (lambda f: (f / PARTS[2]).unlink(), PARTS[0], f"part 3 of 3 .* {PARTS[2]}"),
        (lambda f: (f / PARTS[0]).unlink(), PARTS[1], f"part 1 of 3 .* {PARTS[0]}"),
        (rename, "second.gguf", "it is part 2 of 3; .* ends in -00002-of-00003.gguf"),
        (swap, PARTS[0], "expected split.no 2 and split.count 3, got 1 and 3"),
        (swap, PARTS[2], "it is part 2 of 3; expected a name"),
        (put_whole, PARTS[0], "split.no 2 and split.count 3, got None and None"),
        (lose_tensors, PARTS[0], "expected 21 tensors in its 3 parts, got 17"),
        (repeat_tensor, PARTS[0], f"token_embd.weight is also in {PARTS[0]}"),
    ],
)
def test_a_set_that_is_not_whole_fails_in_one_line(
    folder: Path, damage, opened: str, message: str
):
    damage(folder)
    with pytest.raises(DeftError, match=f"^{folder}/.*{message}") as caught:
        open_checkpoint(folder / opened)
    assert "\n" not in str(caught.value)


def test_a_cut_part_is_named(folder: Path):
    path = folder / PARTS[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DeftError, match=f"^{path}: cut short"):
        open_checkpoint(folder / PARTS[0])


def test_a_whole_file_may_have_the_name_of_a_part(written: Path, tmp_path: Path):
    path = tmp_path / "model-00001-of-00002.gguf"
    shutil.copy(written / "whole.gguf", path)
    checkpoint = open_checkpoint(path)
    check_shapes(checkpoint.config, checkpoint)
