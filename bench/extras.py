"""Packages that the benchmarks need and decoding does not."""

import importlib

from deft_jax.errors import DeftError


def require(*modules: str) -> None:
    """Check that modules of the extra `bench` can be imported.

    Raises:
        DeftError: one cannot; the message says what to install.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DeftError(
                f"benchmarks need {name}, which is not installed; install it with"
                " pip install 'deft-jax[bench]'"
            ) from error
