"""Pieces of llguidance's Lark: a grammar from which the model cannot stray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightllm_mp.parsers.tool import Tool


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

    def arguments(self, index: int, tool: Tool) -> str:
        """The rule of the arguments of a tool, a JSON object."""
        return self.rule(f"arguments_{index}", json_rule(tool.parameters or {}, strict=tool.strict))

    def text(self) -> str:
        return "\n".join(self._rules) + "\n"


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def choice(parts: Sequence[str]) -> str:
    return f"({' | '.join(parts)})"


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """An object of `schema`. Without `strict`, keywords that llguidance does not know are skipped, not refused."""
    whole = {"type": "object", **schema}
    if not strict:
        whole["x-guidance"] = {"lenient": True}
    return f"%json {json.dumps(whole)}"
