"""Reads streams of events like the clients of each API: finds the last event and errors, and joins the events to the
whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.faults.api_requests import CHAT, MESSAGES, RESPONSES, TEXTS

DONE = "[DONE]"
"""The data of the last event of OpenAI's chat and completion streams."""
ENDS = ("message_stop", "response.completed", "response.incomplete")
Event = Any
"""The JSON of an event, or DONE."""


class BadStream(ValueError):
    """The events do not follow the API."""


def is_last(path: str, event: Event) -> bool:
    if path in (CHAT, TEXTS):
        return bool(event == DONE)
    if path in (MESSAGES, RESPONSES):
        return event["type"] in ENDS
    return event["finish_reason"] is not None


def failure(event: Event) -> str | None:
    """The code of an error that comes instead of the answer."""
    if event == DONE:
        return None
    error = event.get("error") or (event.get("response") or {}).get("error")
    return str(error.get("code") or error.get("type")) if error else None


def whole(path: str, events: Sequence[Event]) -> Any:
    """The answer that the events of a complete stream add up to. Raises BadStream."""
    return {CHAT: _chunks, TEXTS: _chunks, MESSAGES: _message, RESPONSES: _response}[path](events)


def _chunks(events: Sequence[Event]) -> Any:
    """Adds up chat and text completions."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in events[:-1]:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            found = choices.setdefault(choice["index"], {"finish": None, "logprobs": []})
            if found["finish"] is not None:
                raise BadStream(f"a chunk of choice {choice['index']} after its last one")
            found["finish"] = choice["finish_reason"]
            found["logprobs"].append(choice["logprobs"])
            for name, value in (choice.get("delta") or {"text": choice.get("text", "")}).items():
                if name == "tool_calls":
                    _add_calls(found, value)
                else:
                    found[name] = found.get(name, "") + value
    if unfinished := [index for index, found in choices.items() if found["finish"] is None]:
        raise BadStream(f"choices {unfinished} have no end")
    for found in choices.values():
        found["logprobs"] = [value for value in found["logprobs"] if value is not None]
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def _add_calls(found: dict[str, Any], deltas: Sequence[Any]) -> None:
    for delta in deltas:
        calls = found.setdefault("calls", {})
        call = calls.setdefault(str(delta["index"]), {"name": "", "arguments": "", "ids": 0})
        call["ids"] += "id" in delta
        for name, piece in delta["function"].items():
            call[name] += piece


def _message(events: Sequence[Event]) -> Any:
    """Adds up Anthropic's messages."""
    blocks: list[dict[str, Any]] = []
    rest: dict[str, Any] = {}
    open_block = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                if open_block or event["index"] != len(blocks):
                    raise BadStream(f"block {event['index']} begins at the wrong time")
                blocks.append({"block": event["content_block"]})
                open_block = True
            case "content_block_delta":
                if not open_block or event["index"] != len(blocks) - 1:
                    raise BadStream(f"a delta of block {event['index']}, which is not open")
                for name, piece in event["delta"].items():
                    blocks[-1][name] = blocks[-1].get(name, "") + piece if name != "type" else piece
            case "content_block_stop":
                open_block = False
            case "message_delta":
                rest = {**event["delta"], "usage": event["usage"]}
    return {"blocks": blocks, **rest}


def _response(events: Sequence[Event]) -> Any:
    """Adds up OpenAI's responses."""
    if (numbers := [event["sequence_number"] for event in events]) != list(range(len(events))):
        raise BadStream(f"the events have the numbers {numbers[:3]} ... {numbers[-3:]}")
    texts: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
    answer = events[-1]["response"]
    for index, item in enumerate(answer["output"]):
        said = item["arguments"] if "arguments" in item else "".join(part["text"] for part in item["content"])
        if texts.get(index, "") != said:
            raise BadStream(f"the deltas of item {index} are not its text")
    return answer
