"""Tools in prompts, for templates that do not know them and for those that want arguments as text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.text.chat.rendering import render_chat
from tests.text.tokenizer_samples import sample

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
]
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def test_a_template_without_tools_gets_them_as_text() -> None:
    text = render_chat(PLAIN, CHAT, tools=[TOOL])
    system, user, assistant, result = text.removeprefix("[").split("[", 3)
    assert system.startswith("system]You may call functions")
    assert json.dumps(TOOL) in system
    assert user == "user]Weather?"
    assert assistant == "assistant]" + CALLED
    assert result == "user]<tool_response>\nsunny\n</tool_response>"


@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_beside_what_the_system_says(content: Any) -> None:
    text = render_chat(PLAIN, [{"role": "system", "content": content}, *CHAT], tools=[TOOL])
    assert text.startswith("[system]Be brief.\n\nYou may call functions")
    assert text.count("[system]") == 1


def test_what_the_assistant_said_stays() -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]}]
    assert render_chat(PLAIN, chat).endswith(f"I look.\n{CALLED}\n{CALLED}")


def test_the_default_model() -> None:
    text = render_chat(sample("default").chat_template, CHAT, tools=[TOOL])
    assert json.dumps(TOOL) in text
    assert CALLED in text


def test_a_chat_without_tools_is_as_before() -> None:
    assert render_chat(PLAIN, CHAT[:1]) == "[user]Weather?"


def test_arguments_are_objects_where_templates_take_them() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
    )
    assert render_chat(template, CHAT) == "Köln"


def test_arguments_are_text_where_templates_join_them() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ 'call ' + c['function']['arguments'] }}{% endfor %}{% endfor %}"
    )
    assert render_chat(template, CHAT) == 'call {"city": "Köln"}'


def test_a_template_that_refuses_both_says_so() -> None:
    with pytest.raises(InvalidRequest, match="never"):
        render_chat("{{ raise_exception('never tools') }}{% for m in messages %}{{ m.tool_calls }}{% endfor %}", CHAT)
