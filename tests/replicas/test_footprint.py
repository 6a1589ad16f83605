"""The estimate of a request's cache contents from its body."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from lightllm_mp.replicas.footprint import ANSWER, BLOCK, MOST_BLOCKS, Footprint, footprint

SYSTEM = {"role": "system", "content": "You are careful. " * 60}
PICTURE = base64.b64encode(bytes(range(256)) * 40).decode()


def chat(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [SYSTEM, *messages], **more}).encode()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def shared(a: Footprint, b: Footprint) -> int:
    return sum(x == y for x, y in zip(a.blocks, b.blocks, strict=False))


def test_a_conversation_begins_with_its_earlier_turn():
    first = footprint(chat(user("What is AI? " * 50)))
    second = footprint(chat(user("What is AI? " * 50), {"role": "assistant", "content": "A"}, user("Really?")))
    assert shared(first, second) == len(first.blocks) > 4
    other = footprint(chat(user("Name a colour. " * 50)))
    assert 0 < shared(first, other) < len(first.blocks)
    assert first.prompt_tokens == pytest.approx(len(chat(user("What is AI? " * 50))) / 4, rel=0.1)


def test_what_separates_caches_separates_digests():
    body = chat(user("hello"))
    assert shared(footprint(body), footprint(body)) > 3
    for other in (footprint(body, b"tenant"), footprint(chat(user("hello"), cache_salt="s"))):
        assert shared(footprint(body), other) == 0
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert shared(footprint(body), footprint(chat(user("hello"), tools=tools))) == 0


def test_an_image_is_one_thing_wherever_it_stands():
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    first = footprint(chat({"role": "user", "content": [url, {"type": "text", "text": "What?"}]}))
    later = footprint(chat(user("hello"), {"role": "user", "content": [{"type": "text", "text": "And?"}, url, url]}))
    native = {"inputs": "<image>", "multimodal_params": {"images": [{"type": "base64", "data": PICTURE}]}}
    assert first.images == later.images == footprint(json.dumps(native).encode()).images
    assert len(first.images) == 1
    escaped = chat({"role": "user", "content": [url]}).replace(b"/", rb"\/")
    assert footprint(escaped).images == first.images
    web = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    assert len(footprint(chat({"role": "user", "content": [web, url]})).images) == 2


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"inputs": "a", "parameters": {"max_new_tokens": 7}}, 7),
        ({"prompt": "a", "max_tokens": 9}, 9),
        ({"input": "a", "max_output_tokens": 11}, 11),
        ({"messages": [], "max_completion_tokens": 13, "max_tokens": None}, 13),
        ({"messages": [], "max_tokens": 100_000}, ANSWER),
        ({"messages": [], "max_tokens": "x"}, ANSWER),
        ({"inputs": "a", "parameters": "x"}, ANSWER),
        ({"inputs": "a"}, ANSWER),
    ],
)
def test_the_expected_answer(body: dict[str, Any], tokens: int):
    assert footprint(json.dumps(body).encode()).answer_tokens == tokens


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b"{}"])
def test_other_bodies_have_none(body: bytes):
    found = footprint(body)
    assert (found.blocks, found.images, found.prompt_tokens) == ((), (), 0)


def test_the_largest_body():
    text = base64.b64encode(os.urandom(3 * BLOCK * MOST_BLOCKS)).decode().replace("/", " ").replace("+", " ")
    assert len(footprint(chat(user(text))).blocks) <= MOST_BLOCKS
    pictures = [base64.b64encode(os.urandom(1 << 15)).decode() for _ in range(200)]
    body = {"inputs": "x", "multimodal_params": {"images": [{"type": "base64", "data": data} for data in pictures]}}
    assert len(footprint(json.dumps(body).encode()).images) == 64
