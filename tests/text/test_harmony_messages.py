"""gpt-oss: what its chat template takes, and answers that become history."""

from __future__ import annotations

from typing import Any

import pytest

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.parsers.formats import detect_formats
from lightllm_mp.text.chat.rendering import compile_template, render_chat
from tests.parsers.replies import answer, read

TEMPLATE = """
{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined else 'medium' -%}
{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort + '<|end|>' }}
{%- if tools %}{{ '<|start|>developer<|message|>' }}{% for tool in tools %}
{{- '// ' + tool.function.description + '\\n' + tool.function.name }}{% endfor %}{{ '<|end|>' }}{% endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
    {%- if 'content' in message and '<|channel|>final<|message|>' in message.content %}
        {{- raise_exception('tags') }}
    {%- endif %}
    {%- if 'thinking' in message and '<|channel|>analysis<|message|>' in message.thinking %}
        {{- raise_exception('tags') }}
    {%- endif %}
    {%- if 'tool_calls' in message %}
        {%- set later = namespace(final=false) %}
        {%- for other in messages[loop.index:] if other.role == 'assistant' and 'tool_calls' not in other %}
            {%- set later.final = true %}
        {%- endfor %}
        {%- set call = message.tool_calls[0].function %}
        {%- if message.content and message.thinking %}{{ raise_exception('both') }}
        {%- elif message.thinking and not later.final %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson + '<|call|>' }}
        {%- set last.name = call.name %}
    {%- else %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
        {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
    {%- endif %}
{%- elif message.role == 'tool' %}
    {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
    {{- message.content | tojson + '<|end|>' }}
{%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
"""The rules of the model's own, in short."""
USER = {"role": "user", "content": "Weather?"}
HEAD = "<|start|>system<|message|>Reasoning: medium<|end|>"
ASKED = "<|start|>user<|message|>Weather?<|end|>"


def call(id: str, city: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "weather", "arguments": f'{{"city": "{city}"}}'}}


def made(city: str) -> str:
    return f'<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{{"city": "{city}"}}<|call|>'


def result(id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


def told(text: str) -> str:
    return f'<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"{text}"<|end|>'


def rendered(*messages: dict[str, Any], **more: Any) -> str:
    return render_chat(TEMPLATE, list(messages), **more).removeprefix(HEAD)


def test_the_format_is_found() -> None:
    assert detect_formats(TEMPLATE, "").harmony
    assert compile_template(TEMPLATE).is_harmony
    assert not compile_template("{{ messages[0].content }}").is_harmony


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("content", [None, ""])
def test_reasoning_stays_before_a_call_whose_answer_is_not_there(key: str, content: str | None) -> None:
    turn = {"role": "assistant", "content": content, key: "Hm.", "tool_calls": [call("1", "Bern")]}
    thought = "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
    asked = rendered(USER, turn, result("1", "sun"))
    assert asked == ASKED + thought + made("Bern") + told("sun") + "<|start|>assistant"
    final = {"role": "assistant", "content": "Sunny.", key: "So."}
    later = rendered(USER, turn, result("1", "sun"), final, {"role": "user", "content": "Thanks"})
    assert "Hm." not in later
    assert "So." not in later


def test_text_before_a_call_is_part_of_the_thought() -> None:
    turn = {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call("1", "Bern")]}
    assert "<|message|>Hm.\n\nI look.<|end|>" in rendered(USER, turn, result("1", "sun"))


def test_several_calls_are_messages_with_their_results() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call("1", "Bern"), call("2", "Genf")]}
    got = rendered(USER, turn, result("2", "rain"), result("1", "sun"))
    assert got == ASKED + made("Bern") + told("sun") + made("Genf") + told("rain") + "<|start|>assistant"


def test_tools_need_no_description() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "// \nf<|end|>" in rendered(USER, tools=tools)


@pytest.mark.parametrize(
    ("effort", "shown"), [("none", "low"), ("minimal", "low"), ("high", "high"), ("xhigh", "high")]
)
def test_effort_is_one_that_the_model_knows(effort: str, shown: str) -> None:
    text = render_chat(TEMPLATE, [USER], kwargs={"reasoning_effort": effort})
    assert text.startswith(f"<|start|>system<|message|>Reasoning: {shown}<|end|>")


def test_a_final_message_is_continued() -> None:
    got = rendered(USER, {"role": "assistant", "content": "It is"}, continue_final=True)
    assert got == ASKED + "<|start|>assistant<|channel|>final<|message|>It is"
    assert answer(read(detect_formats(TEMPLATE, ""), [" sunny."])) == ("", " sunny.", [])
    with pytest.raises(InvalidRequest, match="no text that could be continued"):
        rendered(USER, {"role": "assistant", "tool_calls": [call("1", "Bern")]}, continue_final=True)


def test_an_answer_that_became_history_is_what_the_model_wrote() -> None:
    """All but `<|constrain|>`, which the template leaves out."""
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.weather<|channel|>commentary json"
    text += '<|message|>{"city": "Bern"}<|call|>'
    reasoning, content, calls = answer(read(detect_formats(TEMPLATE, ""), [text]))
    assert (reasoning, content, calls) == ("Hm.", "", [("weather", '{"city": "Bern"}')])
    turn = {"role": "assistant", "content": None, "reasoning_content": reasoning, "tool_calls": [call("1", "Bern")]}
    assert rendered(USER, turn, add_generation_prompt=False) == ASKED + "<|start|>assistant" + text
