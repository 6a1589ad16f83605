"""What holds for every format: any text is read, splits do not matter, calls come back as they were, cost is linear."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.parsers.formats import Formats, marker_tokens
from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.reply import reply_parser
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS
from tests.parsers.replies import TOOLS, answer, joined, random_split, read

FORMATS = [Formats(name, name if name in REASONING_FORMATS else "qwen3") for name in CALL_FORMATS]
MIB = 1 << 20


def _json_objects(call: str) -> Callable[[str, dict[str, Any]], str]:
    return lambda name, arguments: call % json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _arguments(call: str) -> Callable[[str, dict[str, Any]], str]:
    return lambda name, arguments: call % (name, json.dumps(arguments))


def _parameters(head: str, parameter: str, end: str) -> Callable[[str, dict[str, Any]], str]:
    def write(name: str, arguments: dict[str, Any]) -> str:
        texts = ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in arguments.items())
        return head % name + "".join(parameter % pair for pair in texts) + end

    return write


def _keywords(call: str) -> Callable[[str, dict[str, Any]], str]:
    return lambda name, arguments: call % (name, ", ".join(f"{key}={value!r}" for key, value in arguments.items()))


WRITERS: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "deepseek_v3": _arguments(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>%s\n```json\n%s\n```<｜tool▁call▁end｜>"
    ),
    "deepseek_v31": _arguments("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>%s<｜tool▁sep｜>%s<｜tool▁call▁end｜>"),
    "glm45": _parameters("<tool_call>%s\n", "<arg_key>%s</arg_key>\n<arg_value>%s</arg_value>\n", "</tool_call>"),
    "glm47": _parameters("<tool_call>%s", "<arg_key>%s</arg_key><arg_value>%s</arg_value>", "</tool_call>"),
    "gpt_oss": _arguments("<|channel|>commentary to=functions.%s <|constrain|>json<|message|>%s<|call|>"),
    "hermes": _json_objects("<tool_call>\n%s\n</tool_call>"),
    "internlm": _json_objects("<|action_start|><|plugin|>\n%s<|action_end|>"),
    "kimi_k2": _arguments(
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.%s:0<|tool_call_argument_begin|>%s<|tool_call_end|>"
    ),
    "llama3_json": _json_objects("%s"),
    "minicpm": _keywords("<|tool_call_start|>\n```python\n%s(%s)\n```\n<|tool_call_end|>"),
    "minimax_m2": _parameters(
        '<minimax:tool_call>\n<invoke name="%s">\n',
        '<parameter name="%s">%s</parameter>\n',
        "</invoke>\n</minimax:tool_call>",
    ),
    "mistral": _arguments("[TOOL_CALLS]%s[ARGS]%s"),
    "mistral_list": _json_objects("[TOOL_CALLS] [%s]"),
    "pythonic": _keywords("[%s(%s)]"),
    "qwen3_coder": _parameters(
        "<tool_call>\n<function=%s>\n", "<parameter=%s>\n%s\n</parameter>\n", "</function>\n</tool_call>"
    ),
}
"""Writes a call as the model's template writes it."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("{}[]()<>\"'\\/=,:;|` \n\tax1")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": TEXTS,
        "days": st.integers(),
        "share": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        "now": st.booleans(),
        "note": st.none() | TEXTS.filter(lambda text: text not in ("null", "None")),
        "where": st.dictionaries(TEXTS, VALUES, max_size=4),
        "tags": st.lists(VALUES, max_size=4),
    },
)


def test_there_is_a_writer_for_every_format() -> None:
    assert WRITERS.keys() == CALL_FORMATS.keys()


@pytest.mark.parametrize("name", CALL_FORMATS)
@settings(max_examples=40, deadline=None)
@given(arguments=ARGUMENTS, random=st.randoms(use_true_random=False))
def test_a_call_comes_back(name: str, arguments: dict[str, Any], random: Random) -> None:
    text = WRITERS[name]("get_weather", arguments)
    whole = read(Formats(name), [text])
    _, content, calls = answer(whole)
    assert content == ""
    assert [(called, json.loads(sent)) for called, sent in calls] == [("get_weather", arguments)]
    assert joined(read(Formats(name), random_split(text, random))) == joined(whole)
    assert joined(read(Formats(name), text)) == joined(whole)


FRAGMENTS = (
    *{marker for formats in FORMATS for marker in marker_tokens(formats)},
    *"{}[]()<>\"'\\=,:;|` \n",
    *('<invoke name="', '">', "</invoke>", '<parameter name="a">', "functions.f:0"),
    *("<function=f>", "<parameter=a>", "</parameter>", "</function>", "<|channel|>final", " to=functions.f "),
    *(
        '{"name": "f", "arguments": ',
        '{"a": "x"}',
        "```json\n",
        "```",
        "f(a=",
        "get_weather",
        "now",
        "f",
        '"""',
        "\\u00e9",
    ),
    *('"name"', '"arguments"', "12", "-1.5e3", "true", "None", "nul", "text", "é😀", "\\ud83d", "\\x4", "\x00"),
)


@pytest.mark.parametrize("formats", FORMATS, ids=lambda formats: formats.tool_calls)
@settings(max_examples=100, deadline=None)
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=25),
    cuts=st.booleans(),
    thinking=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_any_text_is_read_the_same_from_every_split(
    formats: Formats, fragments: list[str], cuts: bool, thinking: bool, random: Random
) -> None:
    text = "".join(fragment[: random.randint(1, len(fragment))] if cuts else fragment for fragment in fragments)
    whole = joined(read(formats, [text], thinking=thinking))
    assert joined(read(formats, text, thinking=thinking)) == whole
    assert joined(read(formats, random_split(text, random), thinking=thinking)) == whole
    for delta in whole:
        assert getattr(delta, "text", "a name")
        for word in (getattr(delta, key, "") for key in ("text", "name")):
            word.encode()


LONG = [("hermes", "x", MIB), ("qwen3_coder", "x", MIB), ("pythonic", "x", MIB)]
LONG += [(name, big, MIB // 16) for name in CALL_FORMATS for big in ('"', "\\", "\n", "é", "</")]


@pytest.mark.parametrize(("name", "big", "size"), LONG)
def test_a_long_argument_in_single_characters_costs_linear_time(name: str, big: str, size: int) -> None:
    arguments = {"city": big * (size // len(big))}
    text = WRITERS[name]("get_weather", arguments)
    begin = process_time()
    whole = joined(read(Formats(name), text))
    assert process_time() - begin < 5
    assert json.loads(answer(whole)[2][0][1]) == arguments


@pytest.mark.parametrize("formats", FORMATS, ids=lambda formats: formats.tool_calls)
@pytest.mark.parametrize("text", ["x", " ", "<", "[", '{"a":', "{", "1", "f(a=[[", "<tool_call>"])
def test_long_texts_of_other_kinds_cost_linear_time(formats: Formats, text: str) -> None:
    for head in ("", marker_tokens(formats)[0], '<tool_call>{"name": "f", "arguments": {"a": '):
        begin = process_time()
        read(formats, head + text * (MIB // 256 // len(text)))
        read(formats, [head + text * (MIB // 8 // len(text))])
        assert process_time() - begin < 2


@pytest.mark.parametrize("formats", FORMATS, ids=lambda formats: formats.tool_calls)
def test_arguments_are_handed_on_while_they_come(formats: Formats) -> None:
    assert formats.tool_calls is not None
    text = WRITERS[formats.tool_calls]("get_weather", {"city": "x" * 100})
    parser = reply_parser(formats, TOOLS, thinking=False, call_ids=str)
    begin = text.index("x" * 100)
    parser.push(text[: begin + 50])
    assert "".join(getattr(delta, "text", "") for delta in parser.push(text[begin + 50 : begin + 60])) == "x" * 10
