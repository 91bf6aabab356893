"""Which part of a decode step a kernel belongs to."""

import re
from collections.abc import Iterable, Mapping

COMPONENTS = {
    "sampling": "sampling_ms",
    "tree_operations": "tree_ops_ms",
    "kv_write": "model_ms",
    "grouping": "grouping_ms",
    "attention": "attention_ms",
    "layers": "model_ms",
}
"""Named scopes of the decode step, and the numbers of a report they count for."""

OTHER = "other_ms"
LIBRARY = "model_ms"
"""Of kernels whose name is no instruction's: those of the matrix libraries."""

KERNEL_MARKS = {
    "rotary_append": "model_ms",
    "swiglu": "model_ms",
    "mosaic": "attention_ms",
    "RadixSort": "grouping_ms",
    "TopK": "tree_ops_ms",
    "memcpy": OTHER,
    "set_while_condition": OTHER,
    "set_case_condition": OTHER,
}
"""Of kernels that libraries and other compilers name, by a part of the name."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)", re.M)
_PATH = re.compile(r"op_name=\"([^\"]*)\"")


def scopes(program_text: str) -> dict[str, str]:
    """Return the number of a report that each instruction counts for, by its name.

    Args:
        program_text: HLO with metadata, as `Compiled.as_text` gives it.

    Returns:
        By name as kernels have it: "fusion.3" is "fusion_3".
    """
    found = {}
    for name, rest in _INSTRUCTION.findall(program_text):
        path = _PATH.search(rest)
        found[re.sub(r"[.-]", "_", name)] = component(path[1] if path else "")
    return found


def component(path: str) -> str:
    """Return the number that an operation counts for: its innermost known scope's.

    "jit(decode)/while/body/layers/jit(_run_layer)/attention/mul"  ->  "attention_ms"
    """
    known = [part for part in path.split("/") if part in COMPONENTS]
    return COMPONENTS[known[-1]] if known else OTHER


def split(kernels: Mapping[str, float], program_text: str) -> dict[str, float]:
    """Return milliseconds by component.

    Args:
        kernels: milliseconds by kernel name.
        program_text: the compiled program that started them, as text.
    """
    known = scopes(program_text)
    total: dict[str, float] = {}
    for name, ms in kernels.items():
        part = _component_of_kernel(name, known)
        total[part] = total.get(part, 0.0) + ms
    return total


def unknown(kernels: Iterable[str], program_text: str) -> list[str]:
    """Return the kernels that are taken for a matrix library's."""
    known = scopes(program_text)
    marks = tuple(KERNEL_MARKS)
    return [
        name
        for name in kernels
        if name not in known and not any(mark in name for mark in marks)
    ]


def _component_of_kernel(name: str, known: Mapping[str, str]) -> str:
    if name in known:
        return known[name]
    marks = (owner for mark, owner in KERNEL_MARKS.items() if mark in name)
    return next(marks, LIBRARY)
