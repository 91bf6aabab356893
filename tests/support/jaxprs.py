"""How often a traced program computes something, calls of functions followed."""

from collections.abc import Iterator
from typing import Any


def count_scoped(jaxpr: Any, scope: str) -> int:
    """Count the equations of a jaxpr that lie in a named scope.

    What a function computes counts as often as the function is called, whatever the
    compiler may make of equal calls.

        with named_scope("a"): f(x)     f of 3 equations, one of them in scope "b"
        f(x)
        count of "a"  3     count of "b"  2
    """
    count = 0
    for equation in jaxpr.eqns:
        inner = list(_jaxprs(equation))
        if scope in str(equation.source_info.name_stack).split("/"):
            count += sum(_size(each) for each in inner) or 1
        else:
            count += sum(count_scoped(each, scope) for each in inner)
    return count


def _size(jaxpr: Any) -> int:
    """Count all equations of a jaxpr, those of functions it calls in their place."""
    sizes = (sum(_size(each) for each in _jaxprs(e)) or 1 for e in jaxpr.eqns)
    return sum(sizes)


def _jaxprs(equation: Any) -> Iterator[Any]:
    """Give the jaxprs among the parameters of an equation."""
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each
