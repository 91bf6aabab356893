"""Loading: exact weights, progress, memory, and errors in one line."""

import dataclasses
import json
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints import weights as weights_module
from deft_jax.models.checkpoints.checkpoint import open_checkpoint
from deft_jax.models.checkpoints.gguf_blocks import DECODERS, BlockMatrix
from deft_jax.models.checkpoints.weights import READERS, read_weights, weight_shapes
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.load import DTYPES, load_model, open_model
from tests.support.models.loadable_checkpoints import (
    mild_weights,
    write_loadable_folder,
    write_loadable_gguf,
)
from tests.support.models.synthetic_checkpoints import write_gguf

CONFIG = dataclasses.replace(SHAPES["tiny"], num_layers=6, tie_embeddings=False)
WIDE = dataclasses.replace(CONFIG, hidden_size=512, mlp_size=512)


@pytest.fixture(params=["folder", "gguf"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write a checkpoint of `CONFIG` in one format or the other."""
    weights = mild_weights(CONFIG)
    if request.param == "gguf":
        return write_loadable_gguf(tmp_path / "model.gguf", CONFIG, weights)
    return write_loadable_folder(tmp_path / "model", CONFIG, weights, num_shards=2)


class Reader:
    """Reads random tensors and counts how many of them are alive at once."""

    def __init__(self, config):
        """Read tensors of the shapes of a config."""
        self.most_alive = 0
        self._shapes = config.expected_tensors()
        self._alive = 0
        self._lock = threading.Lock()

    def __call__(self, name: str) -> np.ndarray:
        tensor = np.ones(self._shapes[name], np.float32)
        weakref.finalize(tensor, self._count, -1)
        self._count(1)
        return tensor

    def _count(self, change: int) -> None:
        with self._lock:
            self._alive += change
            self.most_alive = max(self.most_alive, self._alive)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_weights_are_fused_transposed_scaled_and_cast(tmp_path: Path, stored, dtype):
    weights = {n: w.astype(stored) for n, w in mild_weights(CONFIG).items()}
    folder = write_loadable_folder(tmp_path / "model", CONFIG, weights)
    model, _ = load_model(folder, dtype=dtype)

    def expected(*names: str, norm: str | None = None) -> np.ndarray:
        parts = [weights[f"{name}.weight"].T for name in names]
        weight = np.concatenate(parts, axis=-1)
        if norm is not None:
            scale = weights[f"model.layers.4.{norm}.weight"].astype(np.float32)
            weight = weight.astype(np.float32) * scale[:, None]
        return weight.astype(dtype)

    attention, mlp = (f"model.layers.4.{part}" for part in ("self_attn", "mlp"))
    heads = (f"{attention}.{part}_proj" for part in "qkv")
    qkv = expected(*heads, norm="input_layernorm")
    layer = model.layers[4]
    np.testing.assert_array_equal(layer.qkv.weight[...], qkv)
    np.testing.assert_array_equal(
        layer.out.weight[...], expected(f"{attention}.o_proj")
    )
    gate_up = (f"{mlp}.{part}_proj" for part in ("gate", "up"))
    gate_up = expected(*gate_up, norm="post_attention_layernorm")
    np.testing.assert_array_equal(layer.gate_up.weight[...], gate_up)
    np.testing.assert_array_equal(layer.down.weight[...], expected(f"{mlp}.down_proj"))
    np.testing.assert_array_equal(model.norm[...], expected("model.norm"))
    np.testing.assert_array_equal(model.head.weight[...], expected("lm_head"))
    embedding = expected("model.embed_tokens").T
    assert model.embedding is not None
    np.testing.assert_array_equal(model.embedding[...], embedding)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}


def test_both_formats_give_the_same_network(tmp_path: Path):
    weights = mild_weights(CONFIG)
    folder = write_loadable_folder(tmp_path / "model", CONFIG, weights)
    file = write_loadable_gguf(tmp_path / "model.gguf", CONFIG, weights)
    models = [load_model(source)[0] for source in (folder, str(file))]
    for one, other in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(one, other)


def test_progress_counts_every_weight_once(source: Path):
    calls: list[tuple[int, int]] = []
    load_model(source, progress=lambda done, total: calls.append((done, total)))
    total = len(weight_shapes(CONFIG))
    assert calls == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("readers", [1, READERS])
def test_each_reader_holds_one_tensor(monkeypatch: pytest.MonkeyPatch, readers: int):
    monkeypatch.setattr(weights_module, "READERS", readers)
    reader = Reader(CONFIG)
    read_weights(CONFIG, reader, np.dtype(np.float32))
    assert 1 <= reader.most_alive <= readers


def test_memory_beyond_the_weights_is_a_few_tensors():
    sizes = [4 * np.prod(shape) for shape in weight_shapes(WIDE).values()]
    tracemalloc.start()
    try:
        weights = read_weights(WIDE, Reader(WIDE), np.dtype(np.float32))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(weights) == len(sizes)
    assert peak < sum(sizes) + READERS * max(sizes) < 2 * sum(sizes)


def test_weights_on_the_cpu_are_the_buffers_they_were_read_into():
    tracemalloc.start()
    try:
        weights = read_weights(WIDE, Reader(WIDE), np.dtype(np.float32))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held > sum(weight.nbytes for weight in weights.values())


@pytest.mark.parametrize("dtype", ["int8", "float64", np.float64, "half precision"])
def test_other_dtypes_are_refused(source: Path, dtype):
    with pytest.raises(DeftError, match="float32, bfloat16, float16; got '"):
        load_model(source, dtype=dtype)


def test_a_shorter_context_is_one_of_the_config(source: Path):
    model, _ = load_model(source, context_length=100)
    assert model.config.context_length == 100
    with pytest.raises(DeftError, match="context_length is 1025; expected 1 to 1024"):
        load_model(source, context_length=1025)
    opened = open_model(source)
    assert opened.with_context_length(100).load().config == model.config
    assert opened.config.context_length == 1024


NOT_FINITE = {
    "model.layers.3.mlp.up_proj.weight": np.nan,
    "model.layers.3.input_layernorm.weight": -np.nan,
    "model.embed_tokens.weight": np.inf,
    "model.norm.weight": -np.inf,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NOT_FINITE)
def test_a_weight_that_is_not_finite_is_named(name: str, dtype: str):
    weights = mild_weights(CONFIG)
    weights[name].flat[-1] = NOT_FINITE[name]
    with pytest.warns(UserWarning, match=f"^tensor {name} holds NaN or infinity") as w:
        read_weights(CONFIG, weights.__getitem__, jnp.dtype(dtype))
    assert len(w) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DECODERS)
def test_a_block_that_is_not_finite_is_named(
    tmp_path: Path, kind: gguf.GGMLQuantizationType, dtype: str
):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, mild_weights(CONFIG), kind)
    checkpoint = open_checkpoint(path)
    name = "model.layers.5.mlp.down_proj.weight"

    def read(asked: str) -> np.ndarray | BlockMatrix:
        tensor = checkpoint.matrix(asked)
        if asked == name:
            assert isinstance(tensor, BlockMatrix)
            blocks = tensor.blocks.copy()
            blocks[37, 2, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
            tensor = BlockMatrix(blocks, kind)
        return tensor

    with pytest.warns(UserWarning, match=f"^tensor {name} holds NaN or infinity"):
        read_weights(CONFIG, read, jnp.dtype(dtype))


def test_a_weight_that_is_too_large_for_the_dtype_is_named():
    name = "model.layers.2.self_attn.o_proj.weight"
    weights = mild_weights(CONFIG)
    weights[name][0, 0] = 1e6
    with np.errstate(over="ignore"), pytest.warns(UserWarning, match="in float16; 1 "):
        read_weights(CONFIG, weights.__getitem__, np.dtype(np.float16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(dtype: str):
    weights = mild_weights(CONFIG)
    largest = float(jnp.finfo(dtype).max)
    weights["model.norm.weight"][:2] = largest, -largest
    read_weights(CONFIG, weights.__getitem__, jnp.dtype(dtype))


def test_a_bias_beside_one_that_is_absent_is_zero(tmp_path: Path):
    biases = frozenset({"self_attn.k_proj", "mlp.down_proj"})
    config = dataclasses.replace(CONFIG, biases=biases)
    weights = mild_weights(config)
    path = write_loadable_gguf(tmp_path / "model.gguf", config, weights)
    model, _ = load_model(path)
    assert model.config.biases == biases
    layer = model.layers[4]
    assert layer.qkv.bias is not None and layer.down.bias is not None
    k_bias = weights["model.layers.4.self_attn.k_proj.bias"]
    expected = np.concatenate([np.zeros(256), k_bias, np.zeros(128)])
    np.testing.assert_array_equal(layer.qkv.bias[...], expected)
    down_bias = weights["model.layers.4.mlp.down_proj.bias"]
    np.testing.assert_array_equal(layer.down.bias[...], down_bias)
    assert layer.out.bias is None and layer.gate_up.bias is None


def damage_tokenizer(folder: Path) -> str:
    """Take the tokenizer away."""
    (folder / "tokenizer.json").unlink()
    return f"expected tokenizer.json in {folder}, found none"


def damage_shapes(folder: Path) -> str:
    """Make the config ask for another width of the MLP."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"intermediate_size": 96}
    path.write_text(json.dumps(config))
    return "gate_proj.weight: expected shape (96, 64), got (128, 64)"


def damage_end(folder: Path) -> str:
    """Cuts the last bytes off."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    return f"expected {len(content)} bytes, got {len(content) - 10}"


@pytest.mark.parametrize("damage", [damage_tokenizer, damage_shapes, damage_end])
def test_damaged_folder_is_one_line(tmp_path: Path, damage: Callable[[Path], str]):
    folder = write_loadable_folder(tmp_path / "model", CONFIG, mild_weights(CONFIG))
    message = damage(folder)
    fails(folder, message)


def test_cut_gguf_is_one_line(tmp_path: Path):
    path = write_loadable_gguf(tmp_path / "model.gguf", CONFIG, mild_weights(CONFIG))
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    fails(path, f"cut short: expected at least {len(content)} bytes")


def test_a_failing_tensor_ends_the_load():
    asked: list[str] = []

    def read(name: str) -> np.ndarray:
        asked.append(name)
        if len(asked) == 5:
            raise DeftError(f"{name} is damaged")
        return np.ones(CONFIG.expected_tensors()[name], np.float32)

    with pytest.raises(DeftError, match="is damaged"):
        read_weights(CONFIG, read, np.dtype(np.float32))
    assert len(asked) < len(CONFIG.expected_tensors())


def fails(source: Path, message: str) -> None:
    """Assert that loading fails in one line that holds the message."""
    with pytest.raises(DeftError) as caught:
        load_model(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
