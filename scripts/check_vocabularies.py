"""Checks the tokenizers of GGUF files against token ids that llama.cpp expects.

    python scripts/check_vocabularies.py FOLDER

FOLDER holds `ggml-vocab-NAME.gguf`, with texts in `.gguf.inp` and their ids in
`.gguf.out`, such as `vendor/llama.cpp/models` in the source distribution of
llama-cpp-python. Prints for each vocabulary how many texts became the expected ids, and
ends with exit status 1 if one did not.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.gguf_file import GGUFFile
from deft_jax.models.tokenizers.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"
"""Stands behind each text of an `.inp` file."""


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """Return the texts that come with a vocabulary, and the ids of each.

    Args:
        path: the `.gguf` file beside which the texts lie.
    """
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = Path(f"{path}.out").read_text(encoding="utf-8").splitlines()
    ids = [[int(number) for number in line.split()] for line in lines]
    # The last text may be empty, and then has no line of its own.
    ids += [[]] * (len(texts) - len(ids))
    return list(zip(texts, ids, strict=True))


def failures(path: Path) -> list[str]:
    """Return a line for each text of a vocabulary that became other ids.

    Raises:
        DeftError: the vocabulary is of a kind that is not supported.
    """
    tokenizer = Tokenizer.from_gguf(GGUFFile(path).metadata)
    lines = []
    for text, expected in cases(path):
        got = tokenizer.encode(text, add_special_tokens=False)
        if got != expected:
            lines.append(f"    {text!r}: expected {expected}, got {got}")
    return lines


def vocabularies(folder: Path) -> Iterator[Path]:
    """Yield the vocabularies in a folder that come with texts and ids."""
    for path in sorted(folder.glob("*.gguf")):
        if Path(f"{path}.inp").is_file() and Path(f"{path}.out").is_file():
            yield path


def main(arguments: list[str]) -> int:
    """Check the vocabularies of the folder that is the only argument."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    warnings.simplefilter("ignore")
    good, checked = 0, 0
    for path in vocabularies(Path(arguments[0])):
        try:
            wrong = failures(path)
        except DeftError as error:
            print(f"{path.name}: not supported: {str(error)[:100]}")
            continue
        num_cases = len(cases(path))
        print(f"{path.name}: {num_cases - len(wrong)} of {num_cases}", *wrong, sep="\n")
        good, checked = good + (not wrong), checked + 1
    print(f"{good} of {checked} supported vocabularies give every expected id")
    return 0 if checked and good == checked else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
