"""Collects a turn of the assistant from its parts, so that it renders the same in every form that clients send."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class AssistantTurn(Struct):
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []

    def call(self, id: str, name: str, arguments: str) -> None:
        """`arguments`: JSON text of an object."""
        function = {"name": name, "arguments": arguments}
        self.calls.append({"function": function, "id": id, "type": "function"})

    def message(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        text = "".join(self.texts)
        found: dict[str, Any] = {"role": "assistant", "content": text or (None if self.calls else "")}
        if self.thoughts:
            found["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            found["tool_calls"] = self.calls
        return found
