"""Frequencies of the rotary position embedding, plain and scaled to long contexts.

Each kind of scaling is a class that knows its numbers and its formula; `rope_sources`
reads them from the formats. The formulas are those of `ROPE_INIT_FUNCTIONS` in Hugging
Face transformers, computed in float64 and rounded once.

Keys stay in the cache as they were rotated and branches of different lengths share
them, so the frequencies of a model are fixed when it is loaded. Transformers lets two
kinds depend on the length of the running sequence instead; here:

* `dynamic` changes nothing up to `max_position_embeddings`, and the engine takes no
  longer sequence, so it is read as no scaling at all;
* `longrope` takes the short factors where the context that is asked for is at most the
  original one, and the long factors otherwise, for sequences of every length.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by a number.

    Attributes:
        factor: divisor of every frequency.
    """

    factor: float

    @property
    def attention_factor(self) -> float:
        """Factor of cosines and sines."""
        return 1.0

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Return plain frequencies [D / 2], stretched."""
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies are divided, high ones kept, those between interpolated.

    Attributes:
        factor: divisor of the low frequencies.
        low_freq_factor: a frequency that makes fewer turns than this within the
            original context is low.
        high_freq_factor: a frequency that makes more turns than this is high.
        original_context_length: tokens of context before scaling.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192

    @property
    def attention_factor(self) -> float:
        """Factor of cosines and sines."""
        return 1.0

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Return plain frequencies [D / 2], stretched."""
        turns = self.original_context_length * frequencies / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): interpolation by dimension, sharper attention.

    Attributes:
        factor: divisor of the frequencies that are interpolated.
        attention_factor: factor of cosines and sines.
        beta_fast: dimensions that make more turns than this are kept.
        beta_slow: dimensions that make fewer turns than this are divided.
        original_context_length: tokens of context before scaling.
        truncate: the two limits are rounded outwards to whole dimensions.
    """

    factor: float
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context_length: int
    truncate: bool = True

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Return plain frequencies [D / 2] of base `theta` above 1, stretched."""
        pairs = len(frequencies)
        low, high = (
            self._pair_of_turns(turns, pairs, theta)
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        width = high - low or 0.001
        divided = np.clip((np.arange(pairs) - low) / width, 0.0, 1.0)
        return divided * frequencies / self.factor + (1 - divided) * frequencies

    def _pair_of_turns(self, turns: float, pairs: int, theta: float) -> float:
        # Pair i makes L theta^(-i / pairs) / 2 pi turns in a context of L tokens.
        length = self.original_context_length / (turns * 2 * math.pi)
        return pairs * math.log(length) / math.log(theta)


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, in two sets.

    Attributes:
        short_factors: D / 2 divisors for contexts up to the original one.
        long_factors: D / 2 divisors for longer contexts.
        attention_factor: factor of cosines and sines.
        original_context_length: tokens of context before scaling.
        is_long: the long factors are the ones to use.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float
    original_context_length: int
    is_long: bool

    @property
    def factors(self) -> tuple[float, ...]:
        """Divisors to use, one for each frequency."""
        return self.long_factors if self.is_long else self.short_factors

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Return plain frequencies [D / 2], stretched."""
        return frequencies / np.asarray(self.factors)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling
"""How a checkpoint stretches its rotary frequencies beyond the trained context."""


def yarn_attention_factor(
    factor: float, mscale: float = 1.0, mscale_all_dim: float = 0.0
) -> float:
    """Return YaRN's factor of cosines and sines where a checkpoint names none."""
    if factor <= 1:
        return 1.0
    return (0.1 * mscale * math.log(factor) + 1) / (
        0.1 * mscale_all_dim * math.log(factor) + 1
    )


def longrope_attention_factor(factor: float, original_context_length: int) -> float:
    """Return LongRoPE's factor of cosines and sines where a checkpoint names none."""
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context_length))


def inverse_frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    factors: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Return the angle per position of each rotated pair.

    Args:
        head_dim: D, even.
        theta: base of the geometric series.
        scaling: stretch of the frequencies, or `None`.
        factors: D / 2 divisors, one for each frequency, applied before `scaling`.

    Returns:
        [D / 2] float32, radians per position, highest frequency first.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if factors is not None:
        frequencies = frequencies / np.asarray(factors)
    if scaling is not None:
        frequencies = scaling.scaled(frequencies, theta)
    return frequencies.astype(np.float32)
