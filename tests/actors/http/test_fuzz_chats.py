"""Whatever is wrong in a chat, its client is told so: no body of any API ends with a 5xx."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from typing import Any

import pytest

from tests.actors.http.harness import Engine, site
from tests.actors.http.test_chat_tools import CALLING, TOOLS

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
DOCUMENTS: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "m",
        "max_tokens": 3,
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "chat_template_kwargs": {"x": 1},
    },
    "/v1/messages": {
        "model": "m",
        "max_tokens": 2000,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"city": "x"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "c"}]},
                ],
            },
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["a"],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u"},
    },
    "/v1/responses": {
        "instructions": "i",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}]},
            {"role": "user", "content": "x"},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "namespace": "n", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "o"}]},
        ],
        "tools": [
            {"type": "function", "name": "f", "parameters": SCHEMA},
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]},
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"},
        "include": ["reasoning.encrypted_content"],
        "top_logprobs": 1,
    },
}
VALUES = [
    None,
    True,
    0,
    -1,
    1.5,
    2**63,
    "",
    "x",
    "null",
    "\ud800",
    "é\u0000",
    [],
    {},
    [[]],
    [None],
    {"type": "text"},
    [{}],
]


def mutated(document: Any, chance: random.Random) -> Any:
    """The document with one or two of its places changed, left out or moved."""
    found = copy.deepcopy(document)
    for _ in range(chance.randint(1, 2)):
        place = found
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], dict | list) and chance.random() < 0.75:
                place = place[key]
                continue
            match chance.randint(0, 3):
                case 0:
                    del place[key]
                case 1 if isinstance(place, dict):
                    place[chance.choice(["unknown", "type", "content", "name"])] = place[key]
                case 2 if isinstance(place, list):
                    place.append(copy.deepcopy(place[key]))
                case _:
                    place[key] = copy.deepcopy(chance.choice(VALUES))
            break
    return found


@pytest.mark.parametrize("path", DOCUMENTS)
def test_no_chat_ends_with_a_5xx(path: str) -> None:
    async def main() -> None:
        chance, statuses = random.Random(path), list[int]()
        async with asyncio.timeout(60), site(engine=Engine(facts=TOOLS, script=CALLING)) as s:
            for number in range(500):
                body = mutated(DOCUMENTS[path], chance) if number else DOCUMENTS[path]
                if isinstance(body, dict) and chance.random() < 0.5:
                    body["stream"] = True
                async with s.session.post(path, data=json.dumps(body)) as response:
                    text = await response.text()
                    assert response.status in (200, 400), (response.status, text, body)
                    assert '"error":{' not in text or response.status == 400, (text, body)
                    statuses.append(response.status)
            await s.settled(lambda: s.frontend.live == 0)
        assert statuses[0] == 200
        assert 400 in statuses

    asyncio.run(main())
