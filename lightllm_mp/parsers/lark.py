"""Builds grammars in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.typed_arguments import schema_types

ANY = "/(?s:.*)/"
"""Any text without special tokens."""
MAX_CHARS = 1 << 20
"""Longest grammar."""
_DEFINITIONS = ("$defs", "definitions")


class LarkRules:
    """The rules of one grammar.

    `special_tokens`: ids of the special tokens, which no text in a grammar matches. `required`: the answer is calls
    only; else text may stand before and between them.
    """

    def __init__(self, special_tokens: Mapping[str, int], *, parallel: bool, required: bool) -> None:
        self._special_tokens = special_tokens
        self.parallel = parallel
        self.required = required
        self._rules: list[str] = []
        self._size = 0

    def marker(self, marker: str) -> str:
        """A marker, as a special token if this vocabulary has it, else as text."""
        token = self._special_tokens.get(marker)
        return literal(marker) if token is None else f"<[{token}]>"

    def opening(self, marker: str) -> str:
        """The marker at which calls begin, with the text before it if text is allowed."""
        return self.marker(marker) if self.required else self.until(marker)

    def several(self, call: str, between: str) -> str:
        """A call, or several if they may be parallel. `between`: the expression between two."""
        return f"{call} ({between} {call})*" if self.parallel else call

    def opened(self, call: str, between: str) -> str:
        """As `several`, of a call that has its own `opening`."""
        return self.several(call, between if self.required else "")

    def rule(self, name: str, *parts: str) -> str:
        """Adds a rule. Returns its name. InvalidRequest if the grammar grows too long."""
        rule = f"{name}: {' '.join(parts)}"
        self._size += len(rule)
        if self._size > MAX_CHARS:
            raise InvalidRequest(f"a grammar of the tools is longer than {MAX_CHARS} characters", param="tools")
        self._rules.append(rule)
        return name

    def until(self, marker: str) -> str:
        """Any text, and the marker at its end."""
        if marker in self._special_tokens:
            return f"{ANY} {self.marker(marker)}"
        return self._numbered("text", ANY, options=f"[suffix={literal(marker)}]")

    def json(self, schema: Mapping[str, Any], *, strict: bool) -> str:
        """JSON of `schema` with the templates' white space only, so that a model cannot write white space without end.

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
        firsts, more = list[str](), ""
        for part in reversed(optional):
            firsts.append(f"{part} {more}")
            more = self._numbered("more", f'(", " {part})? {more}')
        if needed:
            keywords = ' ", " '.join(needed) + f" {more}"
        else:
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
    """`schema` with its references replaced by their targets."""
    if "$ref" not in json.dumps(schema):
        return dict(schema)
    return {**schema, **{key: value for key, value in (tool.parameters or {}).items() if key in _DEFINITIONS}}
