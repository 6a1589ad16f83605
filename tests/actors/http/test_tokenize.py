"""POST /tokenize and /detokenize, in vLLM's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightllm_mp.messages import Count, Detokenize
from tests.actors.http.harness import Site, run

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_text_and_back():
    async def body(s: Site):
        status, answer, _ = await s.post("/tokenize", {"model": "any", "prompt": "a bc def"})
        assert (status, answer) == (200, {"count": 3, "max_model_len": 2048, "tokens": [1, 2, 3]})
        asked = s.engine.tokenizer[-1]
        assert isinstance(asked, Count)
        assert (asked.text, asked.add_special_tokens, asked.chat) == ("a bc def", True, None)
        status, answer, _ = await s.post("/detokenize", {"tokens": [1, 2, 3]})
        assert (status, answer) == (200, {"prompt": "1 2 3"})
        asked = s.engine.tokenizer[-1]
        assert isinstance(asked, Detokenize)
        assert not asked.skip_special_tokens
        assert s.frontend.live == 0

    run(body)


def test_a_chat():
    async def body(s: Site):
        tool = {"type": "function", "function": {"name": "f"}}
        more = {"tools": [tool], "chat_template_kwargs": {"x": 1}, "add_generation_prompt": False}
        status, answer, _ = await s.post("/tokenize", {"messages": HELLO} | more)
        assert (status, answer["count"]) == (200, 1)
        asked = s.engine.tokenizer[-1]
        assert isinstance(asked, Count)
        assert asked.chat is not None
        assert json.loads(asked.chat.messages) == HELLO
        assert (json.loads(asked.chat.tools), json.loads(asked.chat.kwargs)) == ([tool], {"x": 1})
        assert not asked.chat.add_generation_prompt

    run(body)


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"prompt": "a", "other": 1}, "other"),
        ("/tokenize", {"prompt": "x" * 32001}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": []}, "tokens"),
        ("/detokenize", {"tokens": [1000]}, "tokens"),
        ("/detokenize", {"tokens": [1] * 2001}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_what_is_refused(path: str, asked: dict[str, Any], param: str):
    async def body(s: Site):
        status, answer, _ = await s.post(path, asked)
        assert status == 400
        assert answer["error"]["param"] == param, answer
        assert s.frontend.live == 0

    run(body)
