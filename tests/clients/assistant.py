"""An engine that answers what it is told to, behind the real HTTP port: for what the default model is too small for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.facts import ChatFacts, Facts
from tests.actors.http.harness import FACTS, Engine

CALL, BUSY, FOREVER, THINK = "call ", "busy", "forever", "think"
PIECE = 5
"""Characters of a token."""


@dataclass
class Assistant(Engine):
    """What the last message says decides: `call {...}` calls the first tool with these arguments, a tool's answer is
    repeated, `busy...` is refused once, `think` is answered after a thought, `forever` does not end by itself."""

    facts: Facts = field(default_factory=lambda: replace(FACTS, chat=ChatFacts(True, "hermes", "qwen3")))
    pace: float = 0.002
    answers: dict[int, list[str]] = field(default_factory=dict)
    """rid -> the texts of its tokens"""
    refused: set[str] = field(default_factory=set)

    def to_tokenizer(self, message: say.Wire) -> bool:
        if isinstance(message, say.Generate):
            asked = _last(message)["content"]
            if asked.startswith(BUSY) and asked not in self.refused:
                self.refused.add(asked)
                return False
            text = _answer(message)
            for rid in range(message.rid, message.rid + message.terms.n):
                self.answers[rid] = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        return super().to_tokenizer(message)

    def script_of(self, rid: int) -> list[str]:
        return self.answers[rid]


def _answer(message: say.Generate) -> str:
    last = _last(message)
    asked = last["content"]
    if last["role"] == "tool":
        return f"The tool said: {asked}"
    if asked.startswith(CALL) and message.chat is not None and message.chat.tools:
        name = json.loads(message.chat.tools)[0]["function"]["name"]
        return f'<tool_call>{{"name": "{name}", "arguments": {asked.removeprefix(CALL)}}}</tool_call>'
    if asked == THINK:
        return "<think>Hm, well</think>So it is."
    return "" if asked == FOREVER else "Hello, dear reader."


def _last(message: say.Generate) -> dict[str, Any]:
    """Its last message, with its content as text."""
    if message.chat is None:
        return {"role": "user", "content": message.text or ""}
    last = json.loads(message.chat.messages)[-1]
    content = last["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return last | {"content": content}
