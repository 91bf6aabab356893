"""Programs that are kept in files: the same tokens, or none at all."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from deft_jax.engine import kept_programs
from deft_jax.engine.engine import Engine
from deft_jax.engine.kept_programs import compile_to_keep, kept_path, read_program
from deft_jax.errors import CapacityError
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN, ContinueAll
from tests.support.strategies.take_turns import TakeTurns
from tests.support.tiny_model import CAPACITY, AsciiTokenizer, decode_alone, tiny_model

GREEDY = Sampling(temperature=0.0, max_new_tokens=6, ignore_eos=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder for programs."""
    monkeypatch.setenv("DEFT_JAX_CACHE", str(tmp_path))
    return tmp_path


def generate(prompt: str = "Hello") -> tuple[int, ...]:
    """Decode with an engine that compiled ahead, as the command does."""
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)
    engine.compile_ahead(prompt, BestOfN(2), GREEDY)
    [tree] = engine.generate(prompt, BestOfN(2), GREEDY)
    return tree.best().tokens


class Kept(NamedTuple):
    """What one process has compiled and kept.

    Attributes:
        folder: where the files are.
        run: surroundings that no program in JAX's own cache has.
        tokens: what the programs gave when they were compiled.
    """

    folder: Path
    run: str
    tokens: tuple[int, ...]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Compile and keep both steps, once for the module."""
    kept, run = tmp_path_factory.mktemp("kept"), str(uuid.uuid4())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFT_JAX_CACHE", str(kept))
        patch.setattr(kept_programs, "_surroundings", lambda: run)
        return Kept(kept, run, generate())


@pytest.fixture
def kept(compiled: Kept, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Copy what was kept to a folder of the test's own, where it is looked for."""
    shutil.copytree(compiled.folder, folder, dirs_exist_ok=True)
    monkeypatch.setattr(kept_programs, "_surroundings", lambda: compiled.run)
    return compiled._replace(folder=folder)


def test_a_program_that_was_kept_gives_the_same_tokens(kept: Kept, monkeypatch):
    expected = decode_alone("Hello", GREEDY).tokens
    assert kept.tokens == expected
    names = sorted(path.name.rsplit("-", 1)[0] for path in kept.folder.iterdir())
    assert names == ["deft-jax-decode", "deft-jax-prefill"]

    def refuse(*arguments):
        raise AssertionError("a program was compiled that is in a file")

    monkeypatch.setattr("deft_jax.engine.runner.compile_to_keep", refuse)
    assert generate() == expected
    assert generate("other") == decode_alone("other", GREEDY).tokens


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return bytes([*content[:middle], content[middle] ^ 1, *content[middle + 1 :]])


def test_a_damaged_file_is_compiled_anew(kept: Kept, monkeypatch):
    (decode,), (prefill,) = map(kept.folder.glob, ("*decode*", "*prefill*"))
    decode.write_bytes(flipped(decode.read_bytes()))
    prefill.write_bytes(prefill.read_bytes()[:-9])
    assert generate() == kept.tokens
    assert_all_are_read(kept.folder, monkeypatch, kept.tokens)


def test_what_is_damaged_is_no_program(tmp_path: Path):
    """A small one: what is read of a file does not depend on what it computes."""
    path, argument = tmp_path / "kept", (jnp.arange(3.0),)
    lowered = jax.jit(lambda x: x + 1).lower(*argument)
    program = compile_to_keep(lowered, path, argument, 0)
    expected, content = program(*argument), path.read_bytes()
    read = read_program(path, argument, 0)
    assert read is not None and (read(*argument) == expected).all()
    for damaged in (flipped(content), content[:-9], b""):
        path.write_bytes(damaged)
        assert read_program(path, argument, 0) is None
    path.unlink()
    assert read_program(path, argument, 0) is None


def assert_all_are_read(folder: Path, monkeypatch, expected: tuple[int, ...]) -> None:
    """Check that there is a file for both steps, and that both can be used."""
    assert len(list(folder.glob("deft-jax-*"))) == 2

    def refuse(*arguments):
        raise AssertionError("a program was compiled that is in a file")

    with monkeypatch.context() as patched:
        patched.setattr("deft_jax.engine.runner.compile_to_keep", refuse)
        assert generate() == expected


@pytest.fixture
def cache_of_jax(folder: Path) -> Iterator[None]:
    """Let JAX keep all that it compiles in the same folder, as the command does."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.mark.usefixtures("cache_of_jax")
def test_a_file_is_written_anew_though_jax_has_kept_its_program(
    folder: Path, monkeypatch
):
    expected = generate()
    first, second = folder.glob("deft-jax-*")
    first.unlink()
    second.write_bytes(b"")
    assert generate() == expected
    assert_all_are_read(folder, monkeypatch, expected)


def test_nothing_is_renamed_for_a_folder_that_cannot_be_written(
    folder: Path, monkeypatch
):
    """JAX's own cache may lie elsewhere, and knows programs by their names."""
    (folder / "file").write_text("")
    monkeypatch.setenv("DEFT_JAX_CACHE", str(folder / "file"))

    def refuse(*arguments):
        raise AssertionError("a program was renamed that cannot be kept")

    monkeypatch.setattr("deft_jax.engine.runner.renamed", refuse)
    assert generate() == decode_alone("Hello", GREEDY).tokens


def test_other_shapes_and_steps_have_other_files(folder: Path):
    model, static = tiny_model(), (ContinueAll(),)

    def path(step, count, static=static):
        return kept_path(step, static, (model, jax.ShapeDtypeStruct((count,), "int32")))

    paths = {path("decode", 3), path("decode", 4), path("prefill", 3)}
    assert len(paths) == 3 and None not in paths
    assert path("decode", 3) in paths


def test_what_is_not_of_this_package_is_not_kept(folder: Path):
    planner = TakeTurns(n=2)
    assert kept_path("decode", (planner,), (tiny_model(),)) is None


def test_nothing_is_kept_without_a_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEFT_JAX_CACHE", "")
    assert kept_path("decode", (ContinueAll(),), (tiny_model(),)) is None


def test_a_process_may_end_while_it_compiles(tmp_path: Path):
    code = (
        "from deft_jax import BestOfN, Engine, Sampling\n"
        "from tests.support.tiny_model import AsciiTokenizer, tiny_model\n"
        "engine = Engine(tiny_model(), AsciiTokenizer())\n"
        "engine.compile_ahead('hello', BestOfN(24), Sampling(max_new_tokens=9))\n"
    )
    environment = os.environ | {"DEFT_JAX_CACHE": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root)
    assert ended.returncode == 0


def test_too_many_branches_are_refused_before_anything_is_made():
    engine = Engine(tiny_model(), AsciiTokenizer())
    with pytest.raises(CapacityError, match="GiB"):
        engine.compile_ahead("hello", BestOfN(10**9), GREEDY)


def test_another_network_takes_programs_of_its_own(monkeypatch):
    monkeypatch.setenv("DEFT_JAX_CACHE", "")
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=CAPACITY)
    engine.compile_ahead("Hello", BestOfN(2), GREEDY)
    graph, state = nnx.split(tiny_model())
    narrow = jax.tree.map(lambda x: x.astype("bfloat16"), state)
    engine.model = nnx.merge(graph, narrow)
    [tree] = engine.generate("Hello", BestOfN(2), GREEDY)
    assert len(tree.best().tokens) == 6 and engine.state.hidden.dtype == "bfloat16"
    engine.model = tiny_model()
    [tree] = engine.generate("Hello", BestOfN(2), GREEDY)
    assert tree.best().tokens == decode_alone("Hello", GREEDY).tokens
