"""Limits of one rendering of a chat template: time, characters, memory, and the size of nested values.

A template comes with the model and is not trusted. The sandbox keeps it from running code; these limits keep it from
running for ever. Each check comes before the operation, since an operation in C (text times a number, the text of
nested lists) cannot be interrupted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import ItemsView, KeysView, ValuesView
from time import monotonic
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.utils import Namespace

from lightllm_mp.machine import format_bytes

MAX_SECONDS = 1.0
MAX_CHARS = 8 << 20
MAX_BYTES = 256 << 20
"""Memory of all values that a rendering makes, also of those that it drops again."""
MAX_ITEMS = 1 << 20
MAX_NESTED_VALUES = 200_000
MAX_WIDTH = 1000
MAX_INT_BITS = 4096

_PER_ITEM = 128
"""Bytes that one item of a list or dictionary in the template's text counts, the small value in it included."""
_PER_OBJECT = 512
"""Bytes that an object of the template engine counts, its attributes included."""

_ITERABLES = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_CONTAINERS = (*_ITERABLES, dict, Namespace)
_PRINTABLE = (*_CONTAINERS, str, int, float, range, Undefined, type(None))
_CONVERSION = re.compile(r"%(?:\(\w*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")


class TemplateLimit(SecurityError):
    """The template exceeds the limits of a rendering."""


class Budget:
    """The budget of one rendering. Its time begins when it is created."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._deadline = monotonic() + seconds
        self._written = self._made = 0

    def tick(self) -> None:
        """Called in every iteration, call and operation. TemplateLimit if the time is over."""
        if monotonic() > self._deadline:
            raise TemplateLimit("the chat template takes too long")

    def made(self, value: Any) -> Any:
        """Counts the memory of a value that an operation has made, without that of its items. Returns the value."""
        self._count(sys.getsizeof(value))
        return value

    def made_with_items(self, value: Any) -> Any:
        """Counts the memory of a value and of its items. Returns the value."""
        size = sys.getsizeof(value)
        if isinstance(value, dict):
            size += sum(map(sys.getsizeof, value.keys())) + sum(map(sys.getsizeof, value.values()))
        elif isinstance(value, (list, tuple, set, frozenset)):
            size += sum(map(sys.getsizeof, value))
        elif not isinstance(value, (str, int, float)):
            size += _PER_OBJECT
        self._count(size)
        return value

    def made_literal(self, value: Any) -> Any:
        """Counts the memory of a list, tuple or dictionary that stands in the template. Returns it."""
        self._count(_PER_ITEM * (1 + len(value) * (1 + isinstance(value, dict))))
        return value

    def _count(self, size: int) -> None:
        self._made += size
        if self._made > MAX_BYTES:
            raise TemplateLimit(f"the chat template makes more than {format_bytes(MAX_BYTES)} of values")

    def write(self, value: Any) -> str:
        """`value` as text for the output. Counts its characters."""
        self.tick()
        text = self.text(value)
        self._written += len(text)
        check_chars(self._written)
        return text

    def text(self, value: Any) -> str:
        """`value` as text. Objects of the template engine have none, so that no memory address appears in a prompt."""
        return value if type(value) is str else str(self.printable(value))

    def printable(self, value: Any) -> Any:
        """Returns `value` if it and all values in it have a text, within the limits. Else SecurityError."""
        return self.weigh(value, only=_PRINTABLE)

    def weigh(self, value: Any, *, only: tuple[type, ...] = (object,)) -> Any:
        """Returns `value` if it is small enough to compare or print. A part that occurs n times counts n times."""
        if not isinstance(value, _CONTAINERS) and isinstance(value, only):
            return value
        stack: list[Any] = [value]
        count = chars = 0
        while stack:
            item = stack.pop()
            if not isinstance(item, only):
                raise SecurityError(f"a {type(item).__name__} has no text in chat templates")
            if isinstance(item, str):
                chars += len(item)
            elif isinstance(item, Namespace):
                stack.append(item._Namespace__attrs)
            elif isinstance(item, dict):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, _ITERABLES):
                stack += list(item)
            count += 1
            if count + len(stack) > MAX_NESTED_VALUES + (1 << 16):
                raise TemplateLimit("the chat template builds a value that is too large")
        check_chars(chars)
        return value

    def operate(self, operator: str, left: Any, right: Any) -> None:
        """Checks the size of a binary operator's result before it is computed."""
        self.tick()
        if operator == "%" and isinstance(left, str):
            self.printable(right)
            check_format(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "+":
            _check_sum(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 0))


def check_chars(count: int) -> None:
    if count > MAX_CHARS:
        raise TemplateLimit(f"the chat template makes more than {MAX_CHARS} characters")


def check_split(text: str, separator: Any) -> None:
    """TemplateLimit if the parts of the text are too many. `separator` None: it is split at white space."""
    parts = text.count(separator) if isinstance(separator, str) and separator else len(text) // 2
    check_items(parts + 1)


def check_items(count: int) -> None:
    if count > MAX_ITEMS:
        raise TemplateLimit("the chat template builds a list that is too long")


def check_width(*widths: Any) -> None:
    """TemplateLimit for widths that pad text or lists too much."""
    for width in widths:
        if isinstance(width, int) and abs(width) > MAX_WIDTH:
            raise TemplateLimit(f"the chat template pads by more than {MAX_WIDTH}")


def check_replace(text: str, old: str, new: str) -> None:
    check_chars(len(text) + text.count(old) * len(new))


def check_join(separator: str, parts: list[Any]) -> None:
    check_chars(len(separator) * len(parts) + sum(len(part) for part in parts if isinstance(part, str)))


def check_format(text: str, values: Any) -> None:
    """TemplateLimit if the result of `text % values` may be too large."""
    conversions = _CONVERSION.findall(text)
    for width, precision in conversions:
        if "*" in (width, precision) or max(len(width), len(precision)) > 3:
            raise TemplateLimit("the chat template formats with too large a width")
    items = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
    longest = max((len(item) if isinstance(item, str) else MAX_WIDTH for item in items), default=0)
    check_chars(len(text) + len(conversions) * (longest + MAX_WIDTH))


def _check_product(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(many, (str, list, tuple)):
            limit = MAX_CHARS if isinstance(many, str) else MAX_ITEMS
            if len(many) * max(times, 0) > limit:
                raise TemplateLimit("the chat template repeats a value too often")
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        check_chars(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        check_items(len(left) + len(right))


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise TemplateLimit("the chat template computes too large a number")
