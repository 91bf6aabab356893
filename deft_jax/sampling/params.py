"""Sampling parameters: of one request on the host, of many rows on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.errors import CapacityError, DeftError

NO_TOKEN = int(np.iinfo(np.int32).max)
"""Fills unused places of `SamplingRows.bias_token`; a scatter there is dropped."""

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
_NUMBERS = (
    ("temperature", 0, _LARGEST, "finite and at least 0"),
    ("top_p", _SMALLEST, 1, "above 0 and at most 1"),
    ("min_p", 0, 1, "from 0 to 1"),
    ("repetition_penalty", _SMALLEST, _LARGEST, "finite and above 0"),
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one request are chosen, and when it ends.

    max_new_tokens: tokens to generate, at least 1.
    temperature: divisor of the logits; 0 takes the most probable token.
    top_k: keep this many of the most probable tokens; 0 keeps all.
    top_p: keep the fewest of the most probable tokens that hold this probability.
    min_p: keep tokens of at least this fraction of the largest probability.
    repetition_penalty: for tokens already on the path, positive logits are divided
      and negative ones multiplied by it; 1 changes nothing.
    logit_bias: from token id to a number added to its logit.
    seed: 0 to 2**32 - 1; with the branch and the position it fixes each draw.
    stop: strings that end a branch; a single `str` counts as one of them.
    ignore_eos: go on after the end-of-text token.

    Raises:
      DeftError: a value is outside its limits.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        _check_integer("max_new_tokens", self.max_new_tokens, 1, NO_TOKEN)
        _check_integer("top_k", self.top_k, 0, NO_TOKEN)
        _check_integer("seed", self.seed, 0, 2**32 - 1)
        for name, low, high, limits in _NUMBERS:
            _check_number(name, getattr(self, name), low, high, limits)
        for token, bias in self.logit_bias.items():
            _check_integer("a token of logit_bias", token, 0, NO_TOKEN - 1)
            name = f"logit_bias of token {token}"
            _check_number(name, bias, -_LARGEST, _LARGEST, "finite")
        if not all(isinstance(text, str) and text for text in stop):
            raise DeftError(f"stop must hold strings that are not empty, got {stop!r}")

    def check(self, vocab_size: int) -> None:
        """Check what depends on the model.

        Raises:
          DeftError: `logit_bias` names a token that the vocabulary does not have.
        """
        for token in self.logit_bias:
            _check_integer("a token of logit_bias", token, 0, vocab_size - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """Sampling parameters of B rows; the fields are those of `Sampling`.

    temperature: [B] float32.
    top_k: [B] int32.
    top_p: [B] float32.
    min_p: [B] float32.
    repetition_penalty: [B] float32.
    bias_token: [B, C] int32 token ids, distinct in a row; `NO_TOKEN` where unused.
    bias_value: [B, C] float32, added to the logits of `bias_token`.
    seed: [B] uint32.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    bias_token: jax.Array
    bias_value: jax.Array
    seed: jax.Array

    @classmethod
    def create(cls, num_rows: int, bias_capacity: int) -> Self:
        """Neutral rows on the device: greedy, which costs least, and nothing else."""
        return jax.tree.map(jnp.asarray, rows_for([None] * num_rows, bias_capacity))

    def take(self, index: jax.Array) -> Self:
        """The rows at `index`, [B] int32; out of range counts as the nearest row."""
        return jax.tree.map(
            lambda table: jnp.take(table, index, axis=0, mode="clip"), self
        )


def rows_for(requests: Sequence[Sampling | None], bias_capacity: int) -> SamplingRows:
    """One row of NumPy arrays per request; `None` gives a neutral row.

    Raises:
      CapacityError: a request biases more than `bias_capacity` tokens.
    """
    settings = [request or Sampling(temperature=0.0) for request in requests]
    bias_token, bias_value = _bias_columns(settings, bias_capacity)

    def column(name: str, dtype: Any) -> Any:
        return np.array([getattr(setting, name) for setting in settings], dtype)

    return SamplingRows(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        bias_token=bias_token,
        bias_value=bias_value,
        seed=column("seed", np.uint32),
    )


def _bias_columns(settings: Sequence[Sampling], capacity: int) -> tuple[Any, Any]:
    shape = (len(settings), capacity)
    token, value = np.full(shape, NO_TOKEN, np.int32), np.zeros(shape, np.float32)
    for row, setting in enumerate(settings):
        count = len(setting.logit_bias)
        if count > capacity:
            raise CapacityError(
                f"logit_bias may hold at most {capacity} tokens, got {count}; "
                "bias fewer tokens or raise the capacity"
            )
        token[row, :count] = list(setting.logit_bias)
        value[row, :count] = list(setting.logit_bias.values())
    return token, value


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    """Booleans are refused too: they are integers only by descent."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DeftError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise DeftError(f"{name} must be from {low} to {high}, got {value}")


def _check_number(name: str, value: Any, low: float, high: float, limits: str) -> None:
    """The comparisons are written to refuse a NaN."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not is_number:
        raise DeftError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise DeftError(f"{name} must be {limits}, got {value}")
