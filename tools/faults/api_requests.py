"""Requests of OpenAI's and Anthropic's APIs for chaos: chats, tools, constraints, lists of prompts, embeddings."""

from __future__ import annotations

import base64
import random
from typing import Any

from tools.faults.requests import Body, Case, Load, pictures

CHAT, TEXTS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MODEL = "chaos"
INPUTS = 64
"""Inputs of one body that asks for embeddings."""
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
HOSTILE = {"type": "object", "properties": {"a": {"type": "nothing"}}}
"""No schema."""
GUIDED_TOKENS = 80
"""The most tokens of an answer that its grammar may end earlier."""


def apis(seed: int, load: Load) -> list[Case]:
    """Requests of every kind to a language model."""
    rng = random.Random(f"{seed} apis")
    found: list[Case] = []

    def add(kind: str, path: str, body: Body, *, stream: bool, refused: bool = False, **more: Any) -> None:
        found.append(Case(kind, path, {"model": MODEL, "stream": stream, **body}, refused=refused, **more))

    def tokens() -> int:
        return rng.randint(*load.tokens)

    for turn in range(2):
        greedy: Body = {"temperature": 0} if turn else {"temperature": 0.8, "seed": rng.randrange(1 << 30)}
        free = {**greedy, "ignore_eos": True}
        for stream in (False, True):
            asked: Body = {"messages": _messages(rng), **free}
            add("chat", CHAT, {**asked, "max_tokens": tokens()}, stream=stream)
            several: Body = {"n": 3, "max_completion_tokens": tokens() // 2}
            several |= {"stream_options": {"include_usage": True}} if stream else {}
            add("chat n", CHAT, {**asked, **several, "seed": 5, "temperature": 1.0}, stream=stream)
            more: Body = {"logprobs": True, "top_logprobs": 2, "max_tokens": tokens()}
            add("chat logprobs", CHAT, {**asked, **more}, stream=stream)
            guided: Body = {"messages": _messages(rng), **greedy, "max_tokens": GUIDED_TOKENS}
            calls = {"tools": [_tool()], "tool_choice": "required", "n": 1 + turn}
            add("chat tools", CHAT, {**guided, **calls}, stream=stream)
            form = {"type": "json_schema", "json_schema": {"name": "stay", "schema": SCHEMA, "strict": True}}
            add("chat schema", CHAT, {**guided, "response_format": form}, stream=stream)
            add("regex", TEXTS, {"prompt": _words(rng), **greedy, "guided_regex": "([a-f]{3} ){9}"}, stream=stream)
            echo: Body = {"prompt": _words(rng), "echo": bool(turn), "logprobs": 1, "max_tokens": tokens()}
            add("completion", TEXTS, {**echo, **free}, stream=stream)
            prompts = [_words(rng) for _ in range(4)]
            listed: Body = {"prompt": prompts, "n": 2, "max_tokens": tokens() // 2}
            add("list of prompts", TEXTS, {**listed, **free, "seed": 3}, stream=stream, resumable=False)
            message: Body = {"messages": _messages(rng), "max_tokens": tokens(), "temperature": 0}
            add("message", MESSAGES, message, stream=stream)
            called: Body = {"tools": [_anthropic_tool()], "tool_choice": {"type": "any"}, "max_tokens": GUIDED_TOKENS}
            add("message tools", MESSAGES, {**message, **called}, stream=stream)
            response: Body = {"input": _words(rng), "max_output_tokens": tokens(), "store": bool(turn)}
            add("response", RESPONSES, {**response, **free}, stream=stream)
            function = {"type": "function", **_tool()["function"]}
            required: Body = {"tools": [function], "tool_choice": "required", "max_output_tokens": GUIDED_TOKENS}
            add("response tools", RESPONSES, {**response, **greedy, **required}, stream=stream)
            bad = {"type": "json_schema", "json_schema": {"name": "bad", "schema": HOSTILE}}
            add("bad schema", CHAT, {**guided, "response_format": bad}, stream=stream, refused=True)
            leaves: Body = {**asked, "max_tokens": tokens(), "n": 4}
            add("chat leaves", CHAT, leaves, stream=stream, leave_after=rng.randint(4, 9) if stream else 0.1)
            add(
                "list leaves",
                TEXTS,
                {**listed, **free},
                stream=stream,
                leave_after=rng.randint(1, 9) / (20 - 19 * stream),
                resumable=False,
            )
    count: Body = {"model": MODEL, "messages": _messages(rng)}
    found.append(Case("count", "/v1/messages/count_tokens", count, resumable=False))
    return found


def image_chats(seed: int, load: Load) -> list[Case]:
    """Requests with images, of each API that takes them."""
    rng = random.Random(f"{seed} image chats")
    found: list[Case] = []

    def add(kind: str, path: str, key: str, part: dict[str, Any], **more: Any) -> None:
        text = {"type": "input_text" if path == RESPONSES else "text", "text": _words(rng)}
        body: Body = {"model": MODEL, "temperature": 0, key: [{"role": "user", "content": [part, text]}], **more}
        found.extend(Case(kind, path, {**body, "stream": stream}) for stream in (False, True))

    for file in pictures()[:3]:
        data = base64.b64encode(file).decode()
        url, most = f"data:image/png;base64,{data}", rng.randint(*load.tokens)
        chat = {"type": "image_url", "image_url": {"url": url}}
        add("image chat", CHAT, "messages", chat, max_tokens=most, ignore_eos=True, n=2)
        source = {"type": "base64", "media_type": "image/png", "data": data}
        add("image message", MESSAGES, "messages", {"type": "image", "source": source}, max_tokens=most)
        asked = {"type": "input_image", "image_url": url}
        add("image response", RESPONSES, "input", asked, max_output_tokens=most, ignore_eos=True)
    return found


def embeddings(seed: int) -> list[Case]:
    """Requests of every kind to a model of embeddings, whose tokens are bytes."""
    rng = random.Random(f"{seed} embeddings")
    found: list[Case] = []

    def add(kind: str, inputs: Any, *, refused: bool = False, leave: float | None = None, **more: Any) -> None:
        body = {"model": MODEL, "input": inputs, **more}
        alone = isinstance(inputs, str)
        found.append(Case(kind, EMBEDDINGS, body, leave, refused=refused, resumable=alone))

    for turn in range(3):
        add("embeddings", [_words(rng)[:100] for _ in range(INPUTS)], encoding_format="base64")
        add("embeddings", [_words(rng)[:100] for _ in range(INPUTS)])
        ids = [[rng.randrange(3, 256) for _ in range(rng.randint(1, 90))] for _ in range(INPUTS)]
        add("embeddings of ids", ids, encoding_format="base64")
        add("many embeddings", [_words(rng)[:30] for _ in range(5 * INPUTS)], encoding_format="base64")
        add("embedding", _words(rng)[:100], encoding_format="base64" if turn else "float")
        add("embeddings leave", [_words(rng)[:100] for _ in range(4 * INPUTS)], leave=rng.random() / 10)
        add("bad embedding", ["a"] * turn + [[300]], refused=True)
    return found


def _messages(rng: random.Random) -> list[dict[str, str]]:
    system = {"role": "system", "content": "You answer in short sentences."}
    return [system, {"role": "user", "content": f"Tell me a fact about the number {rng.randrange(1000)}."}]


def _words(rng: random.Random) -> str:
    return f"The number {rng.randrange(1000)} is " + "very " * rng.randint(0, 20)


def _tool() -> dict[str, Any]:
    return {"type": "function", "function": {"name": "book_stay", "parameters": SCHEMA}}


def _anthropic_tool() -> dict[str, Any]:
    return {"name": "book_stay", "input_schema": SCHEMA}
