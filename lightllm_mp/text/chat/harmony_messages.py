"""Converts messages and tools for the chat template of gpt-oss.

It reads reasoning from the key `thinking`; refuses a message with calls that has both reasoning and text, or the
content None; shows the first call of a message alone, and takes the result behind it for that call's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]


def is_harmony(template: str) -> bool:
    return "<|channel|>analysis<|message|>" in template and ".thinking" in template


def harmony_messages(messages: Sequence[Message]) -> list[Message]:
    """Converts messages of OpenAI's form. Each call becomes a message of its own with its result behind it; reasoning
    and text before calls become the first call's `thinking`."""
    results = {message.get("tool_call_id"): message for message in messages if message["role"] == "tool"}
    found: list[Message] = []
    placed: set[int] = set()
    for message in messages:
        if id(message) in placed:
            continue
        if message["role"] != "assistant":
            found.append(message)
            continue
        thought = message.get("thinking") or message.get("reasoning_content") or message.get("reasoning") or ""
        calls = message.get("tool_calls") or ()
        rest = {key: value for key, value in message.items() if key not in (*_REASONING, "tool_calls")}
        if not calls:
            found.append(rest | {"content": message["content"] or ""} | ({"thinking": thought} if thought else {}))
            continue
        del rest["content"]
        before = "\n\n".join(part for part in (thought, _text(message["content"])) if part)
        for i, call in enumerate(calls):
            found.append(rest | ({"thinking": before} if before and i == 0 else {}) | {"tool_calls": [call]})
            result = results.get(call.get("id")) if isinstance(call, Mapping) else None
            if len(calls) > 1 and result is not None:
                found.append(result)
                placed.add(id(result))
    return found


_REASONING = ("thinking", "reasoning_content", "reasoning")
"""Keys under which clients send reasoning."""


_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""Efforts that the model does not know -> those that it knows."""


def known_effort(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Template arguments with an effort that the model knows."""
    effort = arguments.get("reasoning_effort")
    known = _EFFORTS.get(effort) if isinstance(effort, str) else None
    return {**arguments, "reasoning_effort": known} if known else dict(arguments)


def described(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools with a description, which the template needs."""
    return [_described(tool) for tool in tools]


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or function.get("description"):
        return dict(tool)
    return {**tool, "function": {**function, "description": ""}}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""
