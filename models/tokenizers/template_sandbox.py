"""The environment in which chat templates run: a sandbox with limits.

Every operation that makes a value passes through here: operators and calls by hooks of
the sandbox, filters by a wrapper, literals, slices and `~` by the code generator. So
none can make what `template_limits` does not allow, whatever it is put together from.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.utils import Namespace, generate_lorem_ipsum
from markupsafe import Markup

from .template_limits import (
    TemplateLimit,
    check_format,
    check_function,
    check_operator,
    current_budget,
)

_MAX_LOREM_IPSUM = 100


class LimitedGenerator(CodeGenerator):
    """Writes code that counts what literals, slices and `~` make, and every loop."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """Write a loop that checks the time at each turn."""
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Write `~` as a call that knows the parts before they are joined."""
        context = frame.eval_ctx
        join = "markup_join" if context.autoescape else "str_join"
        if context.volatile:
            join = "(markup_join if context.eval_ctx.autoescape else str_join)"
        self.write(f"environment.concatenated({join}, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """Write a list that is counted."""
        self._counted(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """Write a mapping that is counted."""
        self._counted(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Write a tuple that is counted, or the names that one is unpacked to."""
        if node.ctx == "store":
            super().visit_Tuple(node, frame)
        else:
            self._counted(super().visit_Tuple, node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """Write a slice that is counted, or a plain look-up."""
        if isinstance(node.arg, nodes.Slice):
            self._counted(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Write a comparison after which the time is checked."""
        self._counted(super().visit_Compare, node, frame)

    def _counted(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame):
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")

    def _output_child_to_const(self, node: Any, frame: Frame, finalize: Any) -> str:
        # Nothing of the template runs before it is rendered, when it has a budget.
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible()
        return super()._output_child_to_const(node, frame, finalize)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which templates run with the limits of the current budget."""

    code_generator_class = LimitedGenerator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, **options: Any):
        """Make the sandbox; the options are those of Jinja's environments."""
        super().__init__(optimized=False, finalize=self.shown, **options)
        for name, function in list(self.filters.items()):
            self.filters[name] = limited_filter(name, function)
        self.globals["namespace"] = LimitedNamespace

    def tick(self) -> None:
        """Check the time."""
        current_budget().tick()

    def made(self, value: Any) -> Any:
        """Count a value that was made, and return it."""
        return current_budget().made(value)

    def shown(self, value: Any) -> Any:
        """Count a value that is written, and return it."""
        budget = current_budget()
        size = budget.size(value)
        budget.check(size)
        budget.spend(size)
        return value

    def concatenated(self, join: Callable[..., str], parts: tuple[Any, ...]) -> str:
        """Return the text of all parts, one behind the other."""
        budget = current_budget()
        budget.check(budget.size(parts))
        return budget.made(join(parts))

    def concat(self, parts: Iterable[str]) -> str:
        """Return the text of a block that was written piece by piece."""
        parts = list(parts)
        budget = current_budget()
        budget.check(sum(map(len, parts)))
        return budget.made("".join(parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return `left operator right`."""
        check_operator(operator, left, right)
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what a function or a method that a template calls returns."""
        if __obj is generate_lorem_ipsum:
            numbers = [x for x in [*args, *kwargs.values()] if isinstance(x, int)]
            if max(numbers, default=0) > _MAX_LOREM_IPSUM:
                raise TemplateLimit(f"lipsum is limited to {_MAX_LOREM_IPSUM}")
        subject = getattr(__obj, "__self__", None)
        if isinstance(subject, str | bytes | int | float | list | tuple | dict):
            name, args = __obj.__name__, _listed(__obj.__name__, args)
            if name not in ("format", "format_map"):  # They check field by field.
                check_function(name, [subject, *args, *kwargs.values()])
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """Return `str.format` of a text with limits, None for other values."""
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        if isinstance(text, Markup):
            formatter = _LimitedEscapeFormatter(self, escape=text.escape)
        else:
            formatter = _LimitedFormatter(self)

        def wrapper(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,), args = args, ()
            return type(text)(formatter.vformat(text, args, kwargs))

        return functools.update_wrapper(wrapper, value)


class LimitedNamespace(Namespace):
    """A namespace whose text does not show what it holds, which may be itself."""

    def __repr__(self) -> str:
        """Return a text of fixed length."""
        return "<Namespace>"


class _LimitedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        check_format(value, format_spec)
        return super().format_field(value, format_spec)


class _LimitedEscapeFormatter(SandboxedEscapeFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        check_format(value, format_spec)
        return super().format_field(value, format_spec)


def limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks what it is given and counts what it makes."""
    passed = int(getattr(function, "jinja_pass_arg", None) is not None)

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        args = (*args[:passed], *_listed(name, args[passed:]))
        check_function(name, [*args[passed:], *kwargs.values()])
        if name == "format":
            check_operator("%", str(args[0]), kwargs or args[1:])
        return current_budget().made(function(*args, **kwargs))

    return limited


def _listed(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments, with a list for an iterator that would be used up."""
    if name not in ("join", "sum", "sort", "unique", "groupby"):
        return args
    return tuple(list(x) if hasattr(x, "__next__") else x for x in args)
