"""An answer that has become history is rendered as the model wrote it, so its prefix is found again."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import detect_formats
from lightllm_mp.text.chat.rendering import render_chat
from tests.parsers.replies import answer, read
from tests.parsers.test_every_format import WRITERS

BEGIN = "{% for message in messages %}{% if message.role == 'user' %}[USER]{{ message.content }}[/USER]{% else %}"
END = "{% endif %}{% endfor %}"
LOOP = "{% for call in message.tool_calls or [] %}{% set call = call.function %}"

GAP = "{{ '\\n' if not loop.first or message.content }}"

TEMPLATES = {
    "hermes": BEGIN
    + "{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{{ message.content }}"
    + LOOP
    + GAP
    + """{{ '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson }}"""
    + "{{ '}\\n</tool_call>' }}{% endfor %}"
    + END,
    "qwen3_coder": BEGIN
    + "{{ message.content }}"
    + LOOP
    + GAP
    + "{{ '<tool_call>\\n<function=' + call.name + '>\\n' }}"
    + "{% for key, value in call.arguments.items() %}{{ '<parameter=' + key + '>\\n' }}"
    + "{{ value if value is string else value | tojson }}{{ '\\n</parameter>\\n' }}{% endfor %}"
    + "{{ '</function>\\n</tool_call>' }}{% endfor %}"
    + END,
    "llama3_json": BEGIN
    + """{# Respond in the format {"name": function name, "parameters": ...} #}{{ message.content }}"""
    + LOOP
    + """{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}{% endfor %}"""
    + END,
    "deepseek_v31": BEGIN
    + "{{ message.content }}<｜tool▁calls▁begin｜>"
    + LOOP
    + "<｜tool▁call▁begin｜>{{ call.name }}<｜tool▁sep｜>{{ call.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}"
    + "<｜tool▁calls▁end｜>"
    + END,
    "kimi_k2": BEGIN
    + "{{ message.content }}<|tool_calls_section_begin|>"
    + "{% for call in message.tool_calls %}<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>"
    + "{{ call.function.arguments | tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>"
    + END,
    "minimax_m2": BEGIN
    + "{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{{ message.content }}"
    + "{{ '\\n<minimax:tool_call>\\n' }}"
    + LOOP
    + """{{ '<invoke name="' + call.name + '">\\n' }}{% for key, value in call.arguments.items() %}"""
    + """{{ '<parameter name="' + key + '">' }}{{ value if value is string else value | tojson }}"""
    + "{{ '</parameter>\\n' }}{% endfor %}{{ '</invoke>\\n' }}{% endfor %}</minimax:tool_call>"
    + END,
}
"""Short for those of the models, with their white space."""


@pytest.mark.parametrize("before", ["", "I look at the weather."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_rendered_as_they_were_written(name: str, before: str) -> None:
    formats = detect_formats(TEMPLATES[name], "")
    assert formats.tool_calls == name
    call = WRITERS[name]("get_weather", {"city": 'Bern "x"\n', "days": 3, "tags": ["a", "b"]})
    text = (before + "\n" if before and name in ("hermes", "qwen3_coder") else before) + call
    if name == "hermes":
        text = f"<think>\nHm.\n\nSo.\n</think>\n\n{text}"
    if name == "llama3_json":
        text = call.replace('"arguments"', '"parameters"')
    if name == "minimax_m2":
        text = f"<think>\nHm.\n</think>\n\n{before}\n{call}"
    text += {"deepseek_v31": "<｜tool▁calls▁end｜>", "kimi_k2": "<|tool_calls_section_end|>"}.get(name, "")
    reasoning, content, calls = answer(read(formats, [text]))
    turn = {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [
            {"id": f"functions.{called}:0", "type": "function", "function": {"name": called, "arguments": arguments}}
            for called, arguments in calls
        ],
    }
    prompt = render_chat(TEMPLATES[name], [{"role": "user", "content": "Hi"}, turn])
    assert prompt == "[USER]Hi[/USER]" + text
