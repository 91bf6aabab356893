"""Sampling parameters: of one request on the host, of many rows on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.errors import CapacityError, DeftError
from deft_jax.sampling.numbers import as_flag, as_integer, as_integers, as_number

NO_TOKEN = int(np.iinfo(np.int32).max)
"""Fills unused places of `SamplingRows.bias_token`; a scatter there is dropped."""

MAX_LOGPROBS = 20
"""Most likely tokens that a generated token can come with."""

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
_INTEGERS = (
    ("max_new_tokens", 1, NO_TOKEN),
    ("top_k", 0, NO_TOKEN),
    ("seed", 0, 2**32 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
)
_NUMBERS = (
    ("temperature", 0, _LARGEST, "finite and at least 0"),
    ("top_p", _SMALLEST, 1, "above 0 and at most 1"),
    ("min_p", 0, 1, "from 0 to 1"),
    ("repetition_penalty", _SMALLEST, _LARGEST, "finite and above 0"),
    ("presence_penalty", -2, 2, "from -2 to 2"),
    ("frequency_penalty", -2, 2, "from -2 to 2"),
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one request are chosen, and when it ends.

    Numbers may be Python's, NumPy's or JAX's scalars; they are kept as Python's.

    Attributes:
        max_new_tokens: tokens to generate, at least 1.
        temperature: divisor of the logits; 0 takes the most probable token.
        top_k: number of the most probable tokens to keep; 0 keeps all.
        top_p: probability that the kept tokens must hold; the fewest of the most
            probable tokens that do are kept.
        min_p: fraction of the largest probability that a kept token must have.
        repetition_penalty: divisor of positive logits, and factor of negative ones, of
            tokens that are already on the path, the prompt's among them; 1 changes
            nothing.
        presence_penalty: -2 to 2, taken from the logits of tokens that were generated
            on the path, the prompt's not among them.
        frequency_penalty: -2 to 2, taken from the logit of a token once for each time
            that it was generated on the path.
        logit_bias: numbers to add to logits, by token id; None for none.
        seed: 0 to 2**32 - 1; with the branch and the position it fixes each draw.
        stop: strings that end a branch; one `str` counts as one of them, None as none.
        stop_token_ids: tokens that end a branch as an end-of-text token does; one
            number counts as one of them, None as none. The token stays in the result,
            with its text if it has any.
        ignore_eos: true to go on after an end-of-text token of the tokenizer; a token
            of `stop_token_ids` ends a branch all the same.
        logprobs: 0 to 20, how many of the most likely tokens, under the model's own
            distribution, each generated token of the result comes with.

    Raises:
        DeftError: a value is outside its limits.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self):
        """Check the values and make them Python's own."""
        self._set("stop", _as_stops(self.stop))
        ends = as_integers("stop_token_ids", self.stop_token_ids, 0, NO_TOKEN - 1)
        self._set("stop_token_ids", ends)
        for name, low, high in _INTEGERS:
            self._set(name, as_integer(name, getattr(self, name), low, high))
        for name, low, high, limits in _NUMBERS:
            self._set(name, as_number(name, getattr(self, name), low, high, limits))
        self._set("logit_bias", _as_biases(self.logit_bias))
        self._set("ignore_eos", as_flag("ignore_eos", self.ignore_eos))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def check(self, vocab_size: int) -> None:
        """Check what depends on the model.

        Args:
            vocab_size: tokens of the vocabulary.

        Raises:
            DeftError: `logit_bias` or `stop_token_ids` names a token that the
                vocabulary does not have, or it has fewer tokens than `logprobs`.
        """
        for name in ("logit_bias", "stop_token_ids"):
            as_integers(name, getattr(self, name), 0, vocab_size - 1)
        as_integer("logprobs", self.logprobs, 0, min(MAX_LOGPROBS, vocab_size))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """Sampling parameters of B rows, or of R requests; `Sampling` explains them.

    Attributes:
        temperature: [B] float32, divisor of the logits; 0 takes the likeliest token.
        top_k: [B] int32, number of the most probable tokens to keep; 0 keeps all.
        top_p: [B] float32, probability that the kept tokens must hold.
        min_p: [B] float32, fraction of the largest probability that is kept.
        repetition_penalty: [B] float32, divisor or factor of logits of path tokens.
        presence_penalty: [B] float32, taken from logits of generated tokens.
        frequency_penalty: [B] float32, taken from them once for each time.
        bias_token: [B, biases] int32, token ids, distinct in a row; `NO_TOKEN` where
            unused.
        bias_value: [B, biases] float32, added to the logits of `bias_token`.
        seed: [B] uint32, number that the draws follow from.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    bias_token: jax.Array
    bias_value: jax.Array
    seed: jax.Array

    @classmethod
    def create(cls, num_rows: int, bias_capacity: int) -> Self:
        """Return neutral rows on the device: greedy, and nothing else."""
        return jax.tree.map(jnp.asarray, rows_for([None] * num_rows, bias_capacity))

    def take(self, index: jax.Array) -> Self:
        """Return the rows at `index`, [B] int32, or the nearest where out of range."""
        return jax.tree.map(
            lambda table: jnp.take(table, index, axis=0, mode="clip"), self
        )


def rows_for(requests: Sequence[Sampling | None], bias_capacity: int) -> SamplingRows:
    """Return a row of NumPy arrays per request; `None` gives a neutral row.

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
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        bias_token=bias_token,
        bias_value=bias_value,
        seed=column("seed", np.uint32),
    )


def _bias_columns(settings: Sequence[Sampling], capacity: int) -> tuple[Any, Any]:
    """Return the tokens and the values of all requests' biases."""
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


def _as_stops(stop: Any) -> tuple[str, ...]:
    """Return the stop strings from one, several or None."""
    if stop is None:
        return ()
    try:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
    except TypeError:
        raise DeftError(f"stop must be a string or several, got {stop!r}") from None
    if not all(isinstance(text, str) and text for text in stops):
        raise DeftError(f"stop must hold strings that are not empty, got {stops!r}")
    return stops


def _as_biases(biases: Any) -> dict[int, float]:
    """Return the biases by token id, from a mapping or None."""
    if biases is None:
        return {}
    if not isinstance(biases, Mapping):
        raise DeftError(f"logit_bias must map token ids to numbers, got {biases!r:.60}")
    found = {}
    for token, bias in biases.items():
        token = as_integer("a token of logit_bias", token, 0, NO_TOKEN - 1)
        name = f"logit_bias of token {token}"
        found[token] = as_number(name, bias, -_LARGEST, _LARGEST, "finite")
    return found
