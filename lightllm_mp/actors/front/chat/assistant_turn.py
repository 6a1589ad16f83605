"""A turn of the assistant, collected from its parts: it is rendered the same way however a client sends it back."""

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
        """As chat templates take it."""
        text = "".join(self.texts)
        found: dict[str, Any] = {"role": "assistant", "content": text or (None if self.calls else "")}
        if self.thoughts:
            found["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            found["tool_calls"] = self.calls
        return found
