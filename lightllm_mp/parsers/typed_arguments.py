"""Arguments as names and texts, made JSON by the types that the tool's schema gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_text import escaped, json_value
from lightllm_mp.parsers.python_text import python_value
from lightllm_mp.parsers.text_reader import Malformed, Parsing, TextReader, read_all
from lightllm_mp.parsers.tool import Tool

MAX_SCHEMAS = 64
"""Schemas that are looked at to find an argument's type."""
_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
_NULLS = ("null", "None")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")


class TypedArguments:
    """Writes the arguments of one call. A string's text is handed on as it comes; other values when they are whole."""

    def __init__(self, writer: DeltaWriter, tool: Tool | None) -> None:
        self._writer = writer
        self._schema = (tool.parameters if tool else None) or {}
        self._empty = True
        self._types: frozenset[str] | None = None
        self._held: list[str] = []
        self._open = False
        """A string's text is handed on."""

    def key(self, name: str) -> None:
        """The next argument's name."""
        self._writer.arguments(f'{"{" if self._empty else ", "}"{escaped(name)}": ')
        self._empty = False
        properties = self._schema.get("properties")
        property = properties.get(name) if isinstance(properties, dict) else None
        self._types = schema_types(property, self._schema)
        self._held, self._open = [], False

    def read(self, reader: TextReader, ends: tuple[str, ...], followers: tuple[str, ...]) -> Parsing[str]:
        """Reads an argument's text up to one of `ends`. Returns the one of `followers` behind it, which is read, too.

        An end with something else behind it is text.
        """
        while end := (yield from reader.until(ends, self._text)):
            read = [end]
            behind = yield from reader.spaces(read.append)
            follower = yield from reader.starts(*followers)
            if follower is not None or not behind:
                self._end_value()
            if follower is not None:
                return follower
            if not behind:
                break
            self._text("".join(read))
        raise Malformed

    def end(self) -> None:
        """The call is whole."""
        if not self._empty:
            self._writer.arguments("}")
        self._writer.end_call()

    def _text(self, text: str) -> None:
        if self._open:
            self._writer.arguments(escaped(text))
            return
        self._held.append(text)
        if self._types == {"string"}:
            self._open_string()
        elif self._types == {"string", "null"}:
            self._held = ["".join(self._held)]
            if not any(null.startswith(self._held[0]) for null in _NULLS):
                self._open_string()

    def _end_value(self) -> None:
        if self._open:
            self._writer.arguments('"')
        else:
            self._writer.arguments(typed_value("".join(self._held), self._types))

    def _open_string(self) -> None:
        self._writer.arguments('"' + escaped("".join(self._held)))
        self._held, self._open = [], True


def schema_types(schema: Any, root: Any) -> frozenset[str] | None:
    """The JSON types of the values that `schema` allows, as far as it names them; None: any."""
    return _types(schema, root, iter(range(MAX_SCHEMAS)))


def _types(schema: Any, root: Any, left: Iterator[int]) -> frozenset[str] | None:
    """`left`: the schemas that may still be looked at; references may form circles."""
    if not isinstance(schema, dict) or next(left, None) is None:
        return None
    if isinstance(target := schema.get("$ref"), str):
        return _types(_referred(target, root), root, left)
    if isinstance(name := schema.get("type"), str):
        return frozenset((name,))
    if isinstance(name, list):
        return frozenset(map(str, name))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        return frozenset(map(_type_of, values))
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(parts := schema.get(key), list):
            found = [_types(part, root, left) for part in parts[:MAX_SCHEMAS]]
            known = [part for part in found if part is not None]
            if known and key == "allOf":
                return frozenset.intersection(*known)
            if known and len(known) == len(parts):
                return frozenset.union(*known)
    return None


def typed_value(text: str, types: frozenset[str] | None) -> str:
    """The JSON of an argument that is written as `text`. Strings are written without quotes."""
    value = _read(text.strip())
    kind = _kind(value) if value else "string"
    if kind == "string":
        return _string(text)
    if types is None or kind in types or (kind == "integer" and "number" in types):
        return value
    if "integer" in types and (whole := _WHOLE.fullmatch(value)):
        return whole[1]
    return _string(text) if "string" in types else value


def _read(text: str) -> str:
    """The JSON of a text that is JSON or a Python literal; empty if it is neither."""
    for read in (json_value, python_value):
        with suppress(Malformed):
            return read_all(read, text)
    return ""


def _kind(value: str) -> str:
    """The type of a JSON text."""
    return _KINDS.get(value[0]) or ("number" if set(value) & set(".eE") else "integer")


def _string(text: str) -> str:
    return f'"{escaped(text)}"'


def _type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _referred(target: str, root: Any) -> Any:
    """What a local reference (#/$defs/x) points at; None if nothing."""
    if not target.startswith("#"):
        return None
    for part in target.split("/")[1:]:
        root = root.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(root, dict) else None
    return root
