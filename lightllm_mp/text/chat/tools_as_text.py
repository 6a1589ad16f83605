"""Writes tools as text, as Hermes and Qwen do, for models whose chat template does not know tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """You may call functions to answer the user. The functions, as JSON within <tools></tools>:
<tools>
"""
TAIL = """
</tools>
To call a function, write a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def with_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with tools as text: the functions in the first message, which is the system's; calls in the
    assistant's messages; results in the user's."""
    found = [_plain(message) for message in messages]
    if not tools:
        return found
    text = HEAD + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + TAIL
    known = found and isinstance(found[0], Mapping)
    first = found[0] if known and found[0].get("role") in ("system", "developer") else {"role": "system"}
    rest = found[1:] if found and first is found[0] else found
    return [{**first, "content": _joined(first.get("content"), text)}, *rest]


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        return message  # is refused later
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or not calls:
        return message
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": _joined(message.get("content"), *map(_call, calls), between="\n")}


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments") or "{}"
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {given}}}\n</tool_call>'


def _joined(content: Any, *texts: str, between: str = "\n\n") -> str:
    return between.join(filter(None, (_text(content), *texts)))


def _text(content: Any) -> str:
    if isinstance(content, (list, tuple)):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""
