"""A Llama in NumPy, written from the papers and the file formats alone.

Nothing is shared with `deft_jax.models`: files are read by the packages that define
their formats, rotations are complex products, and everything is float64.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file


@dataclass(frozen=True, kw_only=True)
class NumpyLlama:
    """A network whose weights are read anew at every use.

    Attributes:
        read: gives a weight by its Hugging Face name, matrices [output, input].
        has: says whether there is a tensor of a name; it is asked for biases.
        num_layers: L.
        num_q_heads: H.
        num_kv_heads: K.
        frequencies: [D / 2], radians per position.
        rms_eps: number that RMSNorm adds to the mean square.
        head: name of the output matrix.
        stretch: factor of rotated queries and keys.
    """

    read: Callable[[str], np.ndarray]
    has: Callable[[str], bool]
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    frequencies: np.ndarray
    rms_eps: float
    head: str
    stretch: float = 1.0

    def logits(self, tokens: npt.ArrayLike) -> np.ndarray:
        """Return [T, V] float64 logits of the tokens that follow each of T tokens."""
        x = self._weight("model.embed_tokens")[np.asarray(tokens)]
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            normed = self._norm(x, f"{prefix}input_layernorm")
            x = x + self._attention(normed, f"{prefix}self_attn.")
            normed = self._norm(x, f"{prefix}post_attention_layernorm")
            x = x + self._swiglu(normed, f"{prefix}mlp.")
        return self._norm(x, "model.norm") @ self._weight(self.head).T

    def _weight(self, name: str) -> np.ndarray:
        return self.read(f"{name}.weight").astype(np.float64)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        bias = f"{name}.bias"
        product = x @ self._weight(name).T
        return product + self.read(bias) if self.has(bias) else product

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        root = np.sqrt(np.square(x).mean(axis=1, keepdims=True) + self.rms_eps)
        return x / root * self._weight(name)

    def _swiglu(self, x: np.ndarray, prefix: str) -> np.ndarray:
        gate = self._linear(x, f"{prefix}gate_proj")
        up = self._linear(x, f"{prefix}up_proj")
        return self._linear(gate / (1 + np.exp(-gate)) * up, f"{prefix}down_proj")

    def _attention(self, x: np.ndarray, prefix: str) -> np.ndarray:
        q, k, v = (self._linear(x, f"{prefix}{p}_proj") for p in "qkv")
        q, k, v = (self._heads(part) for part in (q, k, v))
        q, k = self._rotated(q), self._rotated(k)
        group = self.num_q_heads // self.num_kv_heads
        causal = np.tril(np.ones((len(x), len(x)), bool))
        outputs = []
        for head in range(self.num_q_heads):
            scores = q[:, head] @ k[:, head // group].T / math.sqrt(q.shape[2])
            shares = np.exp(scores - scores.max(axis=1, keepdims=True)) * causal
            shares /= shares.sum(axis=1, keepdims=True)
            outputs.append(shares @ v[:, head // group])
        return self._linear(np.concatenate(outputs, axis=1), f"{prefix}o_proj")

    def _heads(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1, 2 * len(self.frequencies))

    def _rotated(self, heads: np.ndarray) -> np.ndarray:
        # Dimension i and i + D / 2 of a head are one complex number.
        turns = np.exp(1j * np.outer(np.arange(len(heads)), self.frequencies))
        real, imaginary = np.split(heads, 2, axis=2)
        numbers = (real + 1j * imaginary) * turns[:, None]
        return self.stretch * np.concatenate([numbers.real, numbers.imag], axis=2)


def read_folder(folder: Path) -> NumpyLlama:
    """Return the network in a Hugging Face folder."""
    config = json.loads((folder / "config.json").read_text())
    weights: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    frequencies = plain_frequencies(config["rope_theta"], config["head_dim"])
    frequencies, stretch = scaled(frequencies, config)
    return NumpyLlama(
        read=weights.__getitem__,
        has=weights.__contains__,
        num_layers=config["num_hidden_layers"],
        num_q_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        frequencies=frequencies,
        stretch=stretch,
        rms_eps=config["rms_norm_eps"],
        head="model.embed_tokens" if config["tie_word_embeddings"] else "lm_head",
    )


def read_gguf(path: Path) -> NumpyLlama:
    """Return the network in a GGUF file."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(key: str, default: Any = None) -> Any:
        found = reader.fields.get(f"llama.{key}")
        return default if found is None else found.contents()

    num_layers = field("block_count")
    heads = field("attention.head_count"), field("attention.head_count_kv")
    head_dim = field("attention.key_length", field("embedding_length") // heads[0])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, num_layers)

    def gguf_name(name: str) -> str:
        return names.get_name(name, try_suffixes=(".weight", ".bias")) or name

    def read(name: str) -> np.ndarray:
        tensor = tensors[gguf_name(name)]
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if "q_proj" in name or "k_proj" in name:
            return _halves_apart(weight, head_dim)
        return weight

    frequencies = plain_frequencies(field("rope.freq_base"), head_dim)
    if "rope_freqs.weight" in tensors:
        frequencies = frequencies / tensors["rope_freqs.weight"].data
    scaling = {
        "rope_type": field("rope.scaling.type", "linear"),
        "factor": field("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": field(
            "rope.scaling.original_context_length", field("context_length")
        ),
        "attention_factor": field("rope.scaling.attn_factor"),
    }
    for name in ("long", "short"):
        if f"rope_factors_{name}.weight" in tensors:
            scaling[f"{name}_factor"] = tensors[f"rope_factors_{name}.weight"].data
    frequencies, stretch = scaled(
        frequencies,
        {
            "rope_scaling": scaling,
            "rope_theta": field("rope.freq_base"),
            "max_position_embeddings": field("context_length"),
        },
    )
    return NumpyLlama(
        read=read,
        has=lambda name: gguf_name(name) in tensors,
        num_layers=num_layers,
        num_q_heads=heads[0],
        num_kv_heads=heads[1],
        frequencies=frequencies,
        stretch=stretch,
        rms_eps=field("attention.layer_norm_rms_epsilon"),
        head="lm_head" if "output.weight" in tensors else "model.embed_tokens",
    )


def _halves_apart(weight: np.ndarray, head_dim: int) -> np.ndarray:
    # GGUF holds the two rows of a rotated pair side by side.
    source = np.arange(head_dim).reshape(-1, 2).T.reshape(-1)
    heads = weight.reshape(-1, head_dim, *weight.shape[1:])
    return heads[:, source].reshape(weight.shape)


def plain_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Return [D / 2] radians per position (arXiv 2104.09864, section 3.4.3)."""
    return np.array([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])


def scaled(
    frequencies: np.ndarray, config: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
    """Return frequencies as a config.json stretches them, and the factor of heads."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return frequencies, 1.0
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return frequencies / scaling["factor"], 1.0
    if kind == "dynamic":  # The context of the tests is never exceeded.
        return frequencies, 1.0
    if kind == "llama3":
        return np.array([_llama3(frequency, scaling) for frequency in frequencies]), 1.0
    original = scaling["original_max_position_embeddings"]
    context = config["max_position_embeddings"]
    if kind == "longrope":
        stretch = math.sqrt(1 + math.log(context / original) / math.log(original))
        divisors = scaling["long_factor" if context > original else "short_factor"]
        return frequencies / divisors, scaling.get("attention_factor") or stretch
    assert kind == "yarn"
    stretch = scaling.get("attention_factor") or 1 + 0.1 * math.log(scaling["factor"])
    return _yarn(frequencies, config["rope_theta"], original, scaling), stretch


def _yarn(
    frequencies: np.ndarray, theta: float, original: int, scaling: Mapping[str, Any]
) -> np.ndarray:
    # Peng et al., arXiv 2309.00071, sections 3.2 and A.2, on whole dimensions.
    head_dim = 2 * len(frequencies)
    limits = []
    for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)):
        wavelength = original / turns
        limits.append(head_dim / 2 * math.log(wavelength / (2 * math.pi), theta))
    low, high = max(0, math.floor(limits[0])), min(head_dim - 1, math.ceil(limits[1]))
    stretched = []
    for pair, frequency in enumerate(frequencies):
        ramp = min(1.0, max(0.0, (pair - low) / (high - low)))
        stretched.append(frequency * ((1 - ramp) + ramp / scaling["factor"]))
    return np.array(stretched)


def _llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    # Meta's apply_scaling: by wavelength, with a ramp between the two limits.
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / scaling["factor"]
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
