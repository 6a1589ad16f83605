"""Pieces of llguidance's Lark: a grammar from which the model cannot stray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.typed_arguments import schema_types

_DEFINITIONS = ("$defs", "definitions")


class LarkRules:
    """The rules of one grammar. `special_tokens`: ids of the special tokens, which no text in a grammar matches."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        self._rules: list[str] = []

    def marker(self, marker: str) -> str:
        """A marker, as the special token that it is in this vocabulary, or as text."""
        token = self._special_tokens.get(marker)
        return literal(marker) if token is None else f"<[{token}]>"

    def rule(self, name: str, *parts: str) -> str:
        """Adds a rule. Returns its name."""
        self._rules.append(f"{name}: {' '.join(parts)}")
        return name

    def until(self, marker: str) -> str:
        """Any text, and the marker at its end."""
        if marker in self._special_tokens:
            return f"/(?s:.*)/ {self.marker(marker)}"
        return self._numbered("text", "/(?s:.*)/", options=f"[suffix={literal(marker)}]")

    def json(self, schema: Mapping[str, Any], *, strict: bool) -> str:
        """JSON of `schema`, with the white space that templates write, so that a model cannot lose itself in more.

        Without `strict`, keywords that llguidance does not know are skipped, not refused.
        """
        options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": not strict}
        return self._numbered("json", f"%json {json.dumps({**schema, 'x-guidance': options})}")

    def arguments(self, tool: Tool) -> str:
        """The arguments of a tool, a JSON object."""
        return self.json({"type": "object", **(tool.parameters or {})}, strict=tool.strict)

    def json_call(self, tool: Tool, arguments: str) -> str:
        """A call as a JSON object. `arguments`: the key of its arguments."""
        head = literal(f'{{"name": {literal(tool.name)}, "{arguments}": ')
        return self._numbered("json_call", head, self.arguments(tool), '"}"')

    def parameters(self, tool: Tool, begin: Callable[[str], str], end: str) -> list[str]:
        """The arguments of a tool one after another: `begin` of its name, its value, `end`. Strings have no quotes."""
        parts = []
        for name, schema, required in _properties(tool):
            part = self._numbered("parameter", begin(name), self._typed(schema, tool, end))
            parts.append(part if required else part + "?")
        return parts

    def python_call(self, tool: Tool) -> str:
        """A call with keyword arguments, the required ones first."""
        needed, optional = list[str](), list[str]()
        for name, schema, required in _properties(tool):
            value = self.json(_with_definitions(schema, tool), strict=tool.strict)
            (needed if required else optional).append(self._numbered("argument", literal(f"{name}="), value))
        tails = [f'(", " {part})?' for part in optional]
        if needed:
            keywords = " ".join((' ", " '.join(needed), *tails))
        else:
            firsts = [" ".join((part, *tails[index + 1 :])) for index, part in enumerate(optional)]
            keywords = choice(firsts) + "?" if firsts else ""
        return self._numbered("python_call", literal(tool.name + "("), keywords, '")"')

    def text(self) -> str:
        return "\n".join(self._rules) + "\n"

    def _typed(self, schema: Mapping[str, Any], tool: Tool, end: str) -> str:
        """A value and `end`."""
        types = schema_types(schema, tool.parameters)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            return f"{choice([literal(value) for value in values])} {self.marker(end)}"
        if types is None or "string" in types:
            return self.until(end)
        return f"{self.json(_with_definitions(schema, tool), strict=tool.strict)} {self.marker(end)}"

    def _numbered(self, name: str, *parts: str, options: str = "") -> str:
        """Adds a rule whose name has a number of its own."""
        name = f"{name}_{len(self._rules)}"
        self.rule(name + options, *parts)
        return name


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def choice(parts: Sequence[str]) -> str:
    return f"({' | '.join(parts)})"


def _properties(tool: Tool) -> list[tuple[str, Mapping[str, Any], bool]]:
    """Name, schema and whether it is required, of each argument."""
    parameters = tool.parameters or {}
    properties, required = parameters.get("properties"), parameters.get("required")
    return [
        (name, schema if isinstance(schema, dict) else {}, isinstance(required, list) and name in required)
        for name, schema in (properties if isinstance(properties, dict) else {}).items()
    ]


def _with_definitions(schema: Mapping[str, Any], tool: Tool) -> dict[str, Any]:
    """`schema` with what its references point at."""
    return {**schema, **{key: value for key, value in (tool.parameters or {}).items() if key in _DEFINITIONS}}
