"""The Jinja sandbox for chat templates: immutable values, bounded cost, and the functions that Hugging Face offers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from lightllm_mp.text.chat.template_budget import (
    Budget,
    check_chars,
    check_format,
    check_items,
    check_join,
    check_replace,
    check_split,
    check_width,
)
from lightllm_mp.text.chat.template_rewriting import CostPoints, GenerationTag


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_STR_METHODS = _words(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
    "istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
    "rstrip split splitlines startswith strip swapcase title upper"
)
_CONTAINER_METHODS = _words("copy count get index items keys values")
_FILTERS = _words(
    "abs attr batch capitalize center count d default dictsort e escape first float forceescape format groupby indent "
    "int items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr "
    "slice sort string sum title tojson trim truncate unique upper urlencode"
)
_PICKING_FILTERS = ("attr", "d", "default", "first", "last", "max", "min")
"""Filters that return a value that exists."""
_LISTING_FILTERS = ("batch", "list", "reverse", "slice", "sort", "unique")
"""Filters that may make an item of every character of a text."""
_PADDING_FILTERS = ("batch", "center", "round", "slice", "truncate", "int")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Renders one template at a time. `budget` belongs to the current rendering."""

    # Names that a client's template arguments may not take.
    OWN_GLOBALS = frozenset(("range", "dict", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"))
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    intercepted_unops = frozenset(ImmutableSandboxedEnvironment.default_unop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # else constant expressions are evaluated at compile time, without a budget
            finalize=_finalize,
            extensions=[loopcontrols, GenerationTag],
        )
        self.budget = Budget()
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters |= {"tojson": _tojson}
        self.filters = {name: self._bounded(self.filters[name], name) for name in _FILTERS}
        self.tests = {name: self._bounded(cast("Callable[..., Any]", test), name) for name, test in self.tests.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = CostPoints().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        if getattr(__obj, "__func__", None) in (ChatEnvironment.made_literal, ChatEnvironment.made_slice):
            return __obj(*args)  # without weighing what is in the list
        budget.tick()
        for value in (*args, *kwargs.values()):
            budget.weigh(value)
        _check_method(__obj, args)
        made = super().call(__context, __obj, *args, **kwargs)
        return made if _picks(__obj) else budget.made_with_items(made)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.operate(operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def call_unop(self, context: Any, operator: str, arg: Any) -> Any:
        return self.budget.made(super().call_unop(context, operator, arg))

    def getitem(self, obj: Any, argument: Any) -> Any:
        found = super().getitem(obj, self.budget.weigh(argument))
        return self.budget.made(found) if isinstance(obj, str) else found

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"
        formatter = _BoundedFormatter(self)

        def bounded(*args: Any, **kwargs: Any) -> str:
            return formatter.vformat(text, () if is_map else args, args[0] if is_map else kwargs)

        return bounded

    # Rewritten templates call the next five methods, see CostPoints.

    def tick(self) -> None:
        self.budget.tick()

    def weigh(self, value: Any) -> Any:
        return value  # `call` has weighed it, like every argument

    def made_literal(self, value: Any) -> Any:
        return self.budget.made_literal(value)

    def made_slice(self, value: Any) -> Any:
        self.budget.tick()
        return self.budget.made(value)

    def join_text(self, *values: Any) -> str:
        parts = [self.budget.text(value) for value in values]
        check_chars(sum(map(len, parts)))
        return cast(str, self.budget.made("".join(parts)))

    def _bounded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function` (a filter or test), with a check of its arguments."""

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            for value in (*args, *kwargs.values()):
                self.budget.weigh(value)
            passed = 1 if hasattr(function, "jinja_pass_arg") else 0
            before, values = args[:passed], list(args[passed:])
            self._check_filter(name, values, kwargs)
            made = function(*before, *values, **kwargs)
            if name in _PICKING_FILTERS or any(made is value for value in args):
                return made
            return self._counted(made) if isinstance(made, Iterator) else self.budget.made_with_items(made)

        return bounded

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            yield self.budget.made_with_items(value)

    def _check_filter(self, name: str, values: list[Any], kwargs: dict[str, Any]) -> None:
        rest = (*values[1:], *kwargs.values())
        if name in _LISTING_FILTERS and isinstance(values[0], str):
            check_items(len(values[0]))
        if name == "string":
            self.budget.printable(values[0])
        elif name in _PADDING_FILTERS:
            check_width(*rest)
        elif name == "indent":
            check_width(*rest)
            text = values[0] = self.budget.text(values[0])
            widths = [len(width) if isinstance(width, str) else int(width) for width in rest] or [4]
            check_chars(len(text) + (text.count("\n") + 1) * max(widths))
        elif name == "replace":
            text, *changed = [self.budget.text(value) for value in (values[0], *rest) if not isinstance(value, int)]
            if len(changed) >= 2:
                check_replace(text, changed[0], max(changed, key=len))
        elif name == "sum" and any(isinstance(value, (list, tuple)) for value in rest):
            raise SecurityError("sum adds only numbers in chat templates")  # it would copy a list for each item
        elif name == "format":
            check_format(self.budget.text(values[0]), self.budget.printable(kwargs or tuple(values[1:])))
        elif name == "join":
            values[0] = self.budget.printable(list(values[0]))
            separators = [value for value in rest if isinstance(value, str)]
            check_join(max(separators, key=len, default=""), values[0])


class _BoundedFormatter(SandboxedFormatter):
    """str.format for templates: refuses wide fields and counts the result."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if any(len(digits) > 3 for digits in "".join(c if c.isdigit() else " " for c in format_spec).split()):
            raise SecurityError("the chat template formats with too large a width")
        budget = cast(ChatEnvironment, self._env).budget
        return budget.write(format(budget.printable(value), format_spec))


def _check_method(function: Any, args: tuple[Any, ...]) -> None:
    """SecurityError for methods of built-in values that could turn a small value into a large one."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, str):
        if name not in _STR_METHODS:
            raise SecurityError(f"str.{name} is not available in chat templates")
        if name == "replace" and len(args) >= 2:
            check_replace(owner, str(args[0]), str(args[1]))
        elif name in ("split", "rsplit", "splitlines"):
            check_split(owner, args[0] if args and name != "splitlines" else None)
        elif name == "join" and args and isinstance(args[0], (list, tuple)):
            check_join(owner, list(args[0]))
        elif name == "join":
            raise SecurityError("str.join takes a list in chat templates")
    elif isinstance(owner, (int, float, bytes)) or (
        isinstance(owner, (list, tuple, dict)) and name not in _CONTAINER_METHODS
    ):
        raise SecurityError(f"{type(owner).__name__}.{name} is not available in chat templates")


def _picks(function: Any) -> bool:
    """Whether it returns a value that exists."""
    return isinstance(getattr(function, "__self__", None), dict) and function.__name__ == "get"


@pass_context
def _finalize(context: Any, value: Any) -> str:
    return context.environment.budget.write(value)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    if len(layout) > 128 or any(char.isdigit() for char in layout):
        raise SecurityError("this date layout is not available in chat templates")
    return datetime.now().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: plain Unicode, without HTML escapes."""
    if indent is not None and (not isinstance(indent, int) or indent > 16):
        raise SecurityError("tojson indents by at most 16 in chat templates")
    if indent is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts, chars = [], 0
    for part in encoder.iterencode(value):  # a line of a deeply nested value is mostly indentation
        parts.append(part)
        chars += len(part)
        check_chars(chars)
    return "".join(parts)
