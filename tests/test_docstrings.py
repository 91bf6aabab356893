"""The dialect of docstrings, as far as ruff's pydocstyle rules do not hold it.

CONTRIBUTING.md states the rules. What a function gives back is said in a sentence that
begins with a verb; an entry of a section is clear without another one.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["deft_jax", "models", "pallas_kernels", "bench", "scripts", "examples"]

NO_VERBS = {
    *("a", "all", "an", "and", "any", "as", "at", "both", "by", "each", "every"),
    *("for", "from", "how", "if", "in", "it", "its", "like", "likewise", "no", "of"),
    *("on", "one", "or", "same", "so", "such", "that", "the", "these", "this", "to"),
    *("what", "when", "where", "whether", "which", "who", "with", "without"),
}
"""Words that a summary of a function does not begin with: no sentence follows."""

LEANING = re.compile(r"(of|as|like|likewise|see|same|ditto)\b", re.IGNORECASE)
"""How an entry begins that can only be understood with another one or its name."""

SECTION = re.compile(r"^( *)(Args|Attributes|Returns|Yields|Raises):$")
ENTRY = re.compile(r"^( *)[\w*`., ]+(?: \([^)]*\))?: (.*)$")


def documented(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield every definition with its docstring, the module too."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text


def is_property(node: ast.AST) -> bool:
    """Says whether a function is used as a name for its value."""
    names = {ast.unparse(x).split(".")[-1] for x in getattr(node, "decorator_list", [])}
    return bool(names & {"property", "cached_property", "fixture"})


def leaning_entries(text: str) -> Iterator[str]:
    """Yield the entries of sections that begin with a word of `LEANING`."""
    indent = None
    for line in text.splitlines():
        if section := SECTION.match(line):
            indent = len(section.group(1)) + 4
        elif line and indent is not None and len(line) - len(line.lstrip()) < indent:
            indent = None
        elif indent is not None and (entry := ENTRY.match(line)):
            if len(entry.group(1)) == indent and LEANING.match(entry.group(2)):
                yield line.strip()


def problems(source: str) -> list[str]:
    """Return what is wrong with the docstrings of a file, with their lines."""
    found = []
    for node, text in documented(ast.parse(source)):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.FunctionDef) and not is_property(node):
            first = re.split(r"[\s,.:;]", text, maxsplit=1)[0]
            # "Returns" and "Bytes" alike: an imperative ends in no single s.
            plural = re.fullmatch(r"\w+[^s\W]s", first)
            if first.lower() in NO_VERBS or not first[:1].isalpha() or plural:
                found.append(f"{line}: begins with no verb: {text.splitlines()[0]}")
        found += [
            f"{line}: leans on another: {entry}" for entry in leaning_entries(text)
        ]
    return found


@pytest.mark.parametrize(
    "path",
    [
        file.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
    ],
)
def test_docstrings_are_sentences(path: str):
    assert problems((ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("docstring", "count"),
    [
        ("Return the rows.\n\n    Args:\n        x: [B] int32, the rows.", 0),
        ("The rows.", 1),
        ("Returns the rows.", 1),
        ("Rows in order.", 1),
        ("Pass the rows on.", 0),
        ("[B] int32: the rows.", 1),
        ("Return rows.\n\n    Args:\n        x: as in `f`.\n        y: of x.", 2),
        ("Return rows.\n\n    Args:\n        x: text\n            as: it goes on.", 0),
    ],
)
def test_the_rules_find_what_they_are_for(docstring: str, count: int):
    source = f'def f():\n    """{docstring}\n    """\n'
    assert len(problems(source)) == count
