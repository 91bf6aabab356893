"""The outcome of a generation in the file that `--output` names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import deft_jax
from deft_jax.cli.view import EXCERPT_CELLS, outcome_document, outcome_lines
from deft_jax.errors import DeftError
from deft_jax.results.render import plain

_WIDTH = 100


def check_writable(path: str) -> None:
    """Refuse a file that cannot be written, before anything is generated for it.

    Raises:
        DeftError: its folder does not exist, or it or its folder may not be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise DeftError(f"--output {path}: there is no folder {target.parent}")
    if target.is_dir():
        raise DeftError(f"--output {path}: expected a file, got a folder")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise DeftError(f"--output {path}: no permission to write there")


def text_of(
    trees: "Sequence[deft_jax.GenerationTree]", prompts: Sequence[str], full: bool
) -> str:
    """Return trees as plain text.

    Args:
        trees: one per prompt.
        prompts: what the user asked.
        full: show the whole text of every branch.
    """
    max_text = None if full else EXCERPT_CELLS
    return "\n".join(map(plain, outcome_lines(trees, prompts, _WIDTH, max_text)))


def write_outcome(
    path: str,
    as_json: bool,
    prompts: Sequence[str],
    trees: "Sequence[deft_jax.GenerationTree]",
    settings: Mapping[str, Any],
) -> None:
    """Write the trees with the whole text of every branch, or the JSON document.

    Raises:
        OSError: the file cannot be written.
    """
    if as_json:
        content = outcome_document(trees, settings)
    else:
        content = text_of(trees, prompts, full=True)
    try:
        Path(path).write_text(content + "\n", "utf-8", errors="backslashreplace")
    except OSError as error:
        # An error of writing, as of a full disk, does not name the file.
        error.filename = error.filename or path
        raise
