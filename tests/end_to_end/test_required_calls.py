"""The default model cannot call tools by itself, but a required call is always valid."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from lightllm_mp import Server
from tests.end_to_end.served import post

PROPERTIES: dict[str, dict[str, Any]] = {
    "city": {"type": "string", "maxLength": 12},
    "unit": {"enum": ["C", "F"]},
    "days": {"type": "integer", "minimum": 1, "maximum": 9},
    "exact": {"type": "boolean"},
    "tags": {"type": "array", "items": {"enum": ["wind", "rain"]}, "maxItems": 2},
    "place": {
        "type": "object",
        "properties": {"lat": {"type": "integer", "minimum": -90, "maximum": 90}},
        "required": ["lat"],
        "additionalProperties": False,
    },
}


def tools(seed: int) -> list[dict[str, Any]]:
    """Two functions, each with some of the properties."""
    draw = random.Random(seed)
    found = []
    for name in ("look_up", "tell"):
        names = draw.sample(sorted(PROPERTIES), draw.randint(1, 3))
        schema = {
            "type": "object",
            "properties": {name: PROPERTIES[name] for name in names},
            "required": names[: draw.randint(0, len(names))],
            "additionalProperties": False,
        }
        found.append({"type": "function", "function": {"name": name, "parameters": schema}})
    return found


@pytest.mark.parametrize("seed", range(6))
def test_required_calls_of_the_default_model_are_valid(server: Server, seed: int) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    offered = tools(seed)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in offered}
    named = {"type": "function", "function": {"name": "tell"}}
    for choice in ("required", named):
        answer = post(
            server,
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
                "tools": offered,
                "tool_choice": choice,
                "parallel_tool_calls": False,
                "temperature": 1.0,
                "seed": seed,
                "max_tokens": 300,
            },
        )
        shown = answer["choices"][0]
        assert shown["finish_reason"] == "tool_calls", shown
        (call,) = shown["message"]["tool_calls"]
        assert choice == "required" or call["function"]["name"] == "tell"
        jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
        assert shown["message"]["content"] is None
