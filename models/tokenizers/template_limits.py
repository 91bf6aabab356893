"""How much a chat template may do: time, and size of what it makes.

A template is a program of a stranger. Python cannot interrupt an operation, so that
each one is bounded before it runs: no value may be larger than a limit, counting what
its text would take, and all values together may not be larger than another.
"""

import contextvars
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

MAX_SECONDS = 3.0
"""Processor time of one rendering; usual templates take less than a hundredth."""

MAX_VALUE = 2**24
"""Characters of one value, unless four times the messages are more."""

MAX_TOTAL = 2**28
"""Characters of all values together, unless 64 times the messages are more."""

MAX_SOURCE = 2**20
"""Characters of a template."""

ITEM = 16
"""Characters for which an entry of a list counts, about what it takes in memory."""

_MAX_BITS = 2**16
_MAX_SLOW = 2**17
_MAX_SEARCH = 2**30
_SLOW = frozenset({"pprint", "striptags", "sum", "urlize", "wordwrap", "xmlattr"})
_SEARCHES = frozenset({"rfind", "rindex", "rpartition", "rsplit"})
_BY_A_NUMBER = frozenset({"batch", "center", "ljust", "rjust", "slice", "to_bytes"})
_BY_A_PRODUCT = frozenset({"expandtabs", "translate", "wordwrap"})
_WIDTH = re.compile(r"\d{5,}")
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*(?:\d{5,}|\*)")


class TemplateLimit(Exception):
    """A template does more than it may."""


class Budget:
    """What one rendering has left."""

    def __init__(self, inputs: Mapping[str, Any]):
        """Start a rendering.

        Args:
            inputs: the variables of the template, which set how large values may be.
        """
        self._sizes: dict[int, int] = {}
        size = self._measure_inputs(inputs)
        self._max_value = max(MAX_VALUE, 4 * size)
        self._max_total = max(MAX_TOTAL, 64 * size)
        self._spent = 0
        self._deadline = time.thread_time() + MAX_SECONDS

    def tick(self) -> None:
        """Check the time."""
        if time.thread_time() > self._deadline:
            raise TemplateLimit(
                f"it took more than {MAX_SECONDS:g} seconds; it may loop for ever"
            )

    def spend(self, size: int) -> None:
        """Count characters that are made, and check the time."""
        self._spent += size
        if self._spent > self._max_total:
            raise TemplateLimit(
                f"it makes more than {self._max_total} characters of text and lists"
            )
        self.tick()

    def check(self, size: int | float) -> None:
        """Check the characters of one value that is about to be made."""
        if size > self._max_value:
            raise TemplateLimit(
                f"a value would be larger than {self._max_value} characters"
            )

    def made(self, value: Any) -> Any:
        """Count a value that was made, and return it."""
        self.check(self.size(value))
        self.spend(_shallow_size(value))
        return value

    def size(self, value: Any) -> int:
        """Return the characters of a value's text, or some number above the limit.

        A list that holds another one twice counts it twice, as its text does.
        """
        total, stack = 0, [value]
        while stack and total <= self._max_value:
            value = stack.pop()
            known = self._sizes.get(id(value))
            if known is not None:
                total += known
                continue
            total += _shallow_size(value)
            if total <= self._max_value:
                stack.extend(_parts(value))
        return total

    def _measure_inputs(self, value: Any, depth: int = 0) -> int:
        """Return the size of an input; remember those of the containers in it."""
        if depth > 200:
            raise TemplateLimit("the messages are nested more than 200 deep")
        size = _shallow_size(value)
        size += sum(self._measure_inputs(part, depth + 1) for part in _parts(value))
        if isinstance(value, Mapping | list | tuple):
            self._sizes[id(value)] = size
        return size


_CURRENT: contextvars.ContextVar[Budget | None] = contextvars.ContextVar(
    "template_budget", default=None
)


def current_budget() -> Budget:
    """Return what the rendering that runs in this thread has left."""
    budget = _CURRENT.get()
    if budget is None:
        raise TemplateLimit("it runs outside of a rendering")
    return budget


def start_budget(inputs: Mapping[str, Any]) -> contextvars.Token[Budget | None]:
    """Make a budget the current one, until `end_budget` is given the token."""
    return _CURRENT.set(Budget(inputs))


def end_budget(token: contextvars.Token[Budget | None]) -> None:
    """Put back what was before `start_budget`."""
    _CURRENT.reset(token)


def check_function(name: str, arguments: list[Any]) -> None:
    """Check what a filter or a method would make of its arguments.

    Args:
        name: what a filter is called, or a method of text, bytes, lists or numbers.
        arguments: what it works on, then its other arguments.
    """
    budget = current_budget()
    budget.check(budget.size(arguments))
    others = [x for x in arguments[1:] if not isinstance(x, bool)]
    numbers = [abs(x) for x in others if isinstance(x, int)]
    if name in _BY_A_NUMBER:
        budget.check(ITEM * max(numbers, default=0))
    elif name in _BY_A_PRODUCT:
        budget.check(_product(budget, arguments))
    elif name == "zfill":
        budget.check(max(numbers, default=0))
    elif name == "round" and max(numbers, default=0) > 1000:
        budget.check(float("inf"))
    elif name == "replace" and isinstance(arguments[0], str):
        _check_replace(budget, [str(x) for x in arguments[:3] if isinstance(x, str)])
    elif name == "indent" and len(arguments) > 1:
        lines = str(arguments[0]).count("\n") + 1
        budget.check(lines * _product(budget, arguments[1:]))
    elif name == "join" and len(arguments) > 1:
        size = max(map(budget.size, arguments))
        budget.check(size + min(map(_length, arguments)) * max(map(_length, arguments)))
    elif name == "tojson" and len(arguments) > 1 and numbers:
        if max(numbers) > 16 or budget.size(arguments[0]) > 8 * _MAX_SLOW:
            budget.check(float("inf"))
    if name in _SLOW and budget.size(arguments) > _MAX_SLOW:
        raise TemplateLimit(f"`{name}` was given more than {_MAX_SLOW} characters")
    if name in _SEARCHES and _product(budget, arguments) > _MAX_SEARCH:
        raise TemplateLimit(f"`{name}` was given too much to search")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Check what `left operator right` would make."""
    budget = current_budget()
    are_numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and are_numbers:
        if abs(right) * left.bit_length() > _MAX_BITS:
            raise TemplateLimit(f"a number would have more than {_MAX_BITS} bits")
    elif operator == "*" and are_numbers:
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise TemplateLimit(f"a number would have more than {_MAX_BITS} bits")
    elif operator == "*":
        for text, count in ((left, right), (right, left)):
            if isinstance(count, int) and not isinstance(text, int | float):
                budget.check(budget.size(text) * max(count, 0))
    elif operator == "%" and isinstance(left, str | bytes):
        text = left if isinstance(left, str) else left.decode("latin-1")
        if _PERCENT_WIDTH.search(text):
            raise TemplateLimit(f"the format {text[:40]!r} has a width above 9999")
        budget.check(len(text) + text.count("%") * (budget.size(right) + 10_000))


def check_format(value: Any, spec: str) -> None:
    """Check what one field of `str.format` would make."""
    if _WIDTH.search(spec):
        raise TemplateLimit(f"the format {spec[:40]!r} has a width above 9999")
    budget = current_budget()
    size = budget.size(value)
    budget.check(size)
    budget.spend(size + 10_000 * bool(spec))


def _check_replace(budget: Budget, texts: list[str]) -> None:
    if len(texts) == 3:
        text, old, new = texts
        budget.check(len(text) + text.count(old) * len(new))


def _product(budget: Budget, arguments: Iterable[Any]) -> int:
    product = 1
    for argument in arguments:
        is_number = isinstance(argument, int)
        size = abs(argument) if is_number else budget.size(argument)
        product *= max(size, 1)
    return product


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _shallow_size(value: Any) -> int:
    """Return the characters of a value without those of what it holds."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return ITEM + value.bit_length() // 3
    if isinstance(value, Mapping):
        return ITEM + 2 * ITEM * len(value)
    return ITEM + ITEM * len(value) if isinstance(value, _CONTAINERS) else ITEM


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, _CONTAINERS) else ()


_VIEWS = tuple(type(view) for view in ({}.keys(), {}.values(), {}.items()))
_CONTAINERS = (list, tuple, set, frozenset, *_VIEWS)
