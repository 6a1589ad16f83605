"""The formats of a model are found from template and family. The templates are telling lines of real ones."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats, detect_formats, marker_tokens, reasoning_end
from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS

THINK = "{%- set content = message.content.split('</think>')[-1] %}"
CASES = [
    # Qwen 2.5, Qwen 3, Hermes
    (
        '<tool_call>\\n{"name": <function-name>, "arguments": <args>}\\n</tool_call>',
        "qwen2",
        "hermes",
        None,
    ),
    ('{{- \'<tool_call>\\n{"name": "\' }}' + THINK, "qwen3", "hermes", "qwen3"),
    # Qwen3-Coder, Qwen 3.5
    ("{{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}", "qwen3_moe", "qwen3_coder", None),
    ("{{- '<tool_call>\\n<function=' }}{{- '<think>\\n' }}", "qwen3_5", "qwen3_coder", "qwen3"),
    # GLM 4.5 to 4.7
    (
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>{{ '\\n<think></think>' }}",
        "glm4_moe",
        "glm45",
        "glm45",
    ),
    (
        "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>{{ '</think>' }}",
        "glm4_moe_lite",
        "glm47",
        "glm45",
    ),
    # Kimi K2 and K2-Thinking, MiniMax-M2
    ("<|tool_calls_section_begin|>{{ call['id'] }}<|tool_call_argument_begin|>", "deepseek_v3", "kimi_k2", None),
    ("{{ '<|im_system|>tool_declare<|im_middle|>' -}}{{- tools | tojson -}}", "deepseek_v3", "kimi_k2", None),
    ("<think>{{ rc }}</think><|tool_calls_section_begin|>{{ id }}", "deepseek_v3", "kimi_k2", "kimi_k2"),
    (
        "{%- set toolcall_begin_token = '<minimax:tool_call>' -%}{{- ']~b]ai' ~ '\n' ~ '<think>' ~ '\n' }}",
        "minimax_m2",
        "minimax_m2",
        "minimax_m2",
    ),
    # DeepSeek V3, R1, V3.1
    (
        "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + '\\n```json\\n'}}",
        "deepseek_v3",
        "deepseek_v3",
        None,
    ),
    (
        "{{'<｜Assistant｜><think>\\n'}}{{'<｜tool▁call▁begin｜>' + tool['type'] + '```json'}}",
        "deepseek_v3",
        "deepseek_v3",
        "deepseek_r1",
    ),
    (
        "{{'<｜Assistant｜>'}}{{'</think>'}}{{'<｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>'}}",
        "deepseek_v3",
        "deepseek_v31",
        "deepseek_r1",
    ),
    ("{{'<｜Assistant｜><think>\\n'}}", "qwen2", "hermes", "deepseek_r1"),
    # Llama 3.1, 3.2, 4
    (
        '{{- \'Respond in the format {"name": function name, "parameters": dictionary\' }}<|python_tag|>',
        "llama",
        "llama3_json",
        None,
    ),
    (
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]",
        "llama",
        "pythonic",
        None,
    ),
    ("Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]", "llama4", "pythonic", None),
    (
        '{{- \'Respond in the format {"name": function name, "parameters": x\' }}<|python_start|>',
        "llama4",
        "llama3_json",
        None,
    ),
    # Mistral
    ('{{- "[TOOL_CALLS] [" }}', "mistral", "mistral_list", None),
    ("{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", "mistral3", "mistral", None),
    ("{{- '[THINK]' + text + '[/THINK]' }}{{- '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral3", "mistral", "mistral"),
    # gpt-oss
    ("{{- '<|start|>assistant<|channel|>commentary to=functions.' }}<|message|>", "gpt_oss", "gpt_oss", "gpt_oss"),
    # InternLM, MiniCPM
    (
        '{{- "<|im_start|>system name=<|plugin|>\\n[" }}{{- "<|action_start|><|plugin|>\\n" }}',
        "internlm2",
        "internlm",
        None,
    ),
    ("<|thought_start|>\\n<|tool_call_start|>\\n```python\\nfunc1(", "minicpm3", "minicpm", "minicpm"),
    # No word of tools: the family, or the most common form
    ("{{ message.content }}", "internlm2", "internlm", None),
    ("{{ message.content }}", "gpt_oss", "gpt_oss", "gpt_oss"),
    ("{{ message.content }}", "llama", "hermes", None),
    ("", "", "hermes", None),
]


@pytest.mark.parametrize(("template", "model_type", "calls", "reasoning"), CASES)
def test_detection(template: str, model_type: str, calls: str, reasoning: str | None) -> None:
    assert detect_formats(template, model_type) == Formats(calls, reasoning)


def test_every_format_is_found_somewhere() -> None:
    assert {calls for _, _, calls, _ in CASES} == CALL_FORMATS.keys()
    assert {reasoning for _, _, _, reasoning in CASES} == {*REASONING_FORMATS, None}


def test_markers() -> None:
    assert marker_tokens(Formats()) == ()
    assert marker_tokens(Formats("hermes", "qwen3")) == ("<tool_call>", "</tool_call>", "<think>", "</think>")
    assert "<|channel|>" in marker_tokens(Formats("gpt_oss"))
    assert "<|channel|>" in marker_tokens(Formats(None, "gpt_oss"))


def test_the_end_of_reasoning() -> None:
    assert reasoning_end(Formats("hermes")) is None
    assert reasoning_end(Formats("hermes", "qwen3")) == "</think>"
    assert reasoning_end(Formats("gpt_oss", "gpt_oss")) == "<|channel|>final<|message|>"
