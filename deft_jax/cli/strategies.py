"""The strategies that `--strategy` names."""

import argparse
from collections.abc import Callable

import deft_jax


def _self_consistency(options: argparse.Namespace) -> "deft_jax.SelfConsistency":
    if options.answer_pattern is None:
        return deft_jax.SelfConsistency(options.n)
    return deft_jax.SelfConsistency(options.n, options.answer_pattern)


STRATEGIES: dict[str, Callable[[argparse.Namespace], "deft_jax.BestOfN"]] = {
    "best-of-n": lambda options: deft_jax.BestOfN(options.n),
    "self-consistency": _self_consistency,
}
"""Name on the command line -> constructor from the options."""
