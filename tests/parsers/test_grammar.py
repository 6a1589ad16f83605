"""Grammars of calls: llguidance takes them, and whatever they allow is read as calls that fit the schema."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.parsers.formats import Formats, marker_tokens
from lightllm_mp.parsers.grammar import grammar
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS
from tests.parsers.replies import TOOLS, answer, read
from tests.parsers.test_every_format import WRITERS

llguidance = pytest.importorskip("llguidance")
BYTES = llguidance.LLTokenizer("byte")
ENDINGS = (b"\n</parameter>\n", b"</arg_value>", b'"', b"<|end|>")
"""What ends free text."""


def matcher(lark: str) -> Any:
    found = llguidance.LLMatcher(BYTES, llguidance.grammar_from("lark", lark))
    assert not found.get_error()
    return found


def accepts(lark: str, text: str) -> bool:
    state, data = matcher(lark), list(text.encode())
    return state.try_consume_tokens(data) == len(data) and state.is_accepting()


def random_text(lark: str, random: Random) -> str:
    """A text of the grammar."""
    state, text = matcher(lark), bytearray()
    while not state.is_stopped():
        mask = state.compute_bitmask()
        allowed = [token for token in range(256) if mask[token >> 3] >> (token & 7) & 1]
        if not allowed or (state.is_accepting() and random.random() < 0.5):
            break
        free = len(allowed) > 64
        piece = random.choice(ENDINGS) if free and random.random() < 0.3 else bytes((random.choice(allowed),))
        if free and piece[0] >= 0x80:
            piece = "é".encode()
        data = list(piece)
        if state.validate_tokens(data) == len(data):
            state.consume_tokens(data)
            text += piece
    return text.decode()


def fits(value: Any, schema: dict[str, Any]) -> bool:
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list}
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return value is None or fits(value, schema["anyOf"][0])
    if schema.get("$ref") or schema.get("type") == ["integer", "string"]:
        return isinstance(value, dict if "$ref" in schema else (int, str))
    return isinstance(value, kinds[schema["type"]]) if "type" in schema else True


@pytest.mark.parametrize("name", CALL_FORMATS)
@pytest.mark.parametrize("seed", range(12))
def test_what_the_grammar_allows_is_read_as_calls(name: str, seed: int) -> None:
    text = random_text(grammar(Formats(name), TOOLS, parallel=seed % 2 == 1), Random(seed))
    _, content, calls = answer(read(Formats(name), [text]))
    assert content == ""
    assert calls
    assert len(calls) == 1 or seed % 2 == 1
    by_name = {tool.name: tool.parameters or {} for tool in TOOLS}
    for called, arguments in calls:
        schema, values = by_name[called], json.loads(arguments)
        assert all(fits(values[key], part) for key, part in schema.get("properties", {}).items() if key in values), text
        assert all(key in values for key in schema.get("required", ()))


ENDS = {
    "deepseek_v3": "<｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁end｜>",
    "kimi_k2": "<|tool_calls_section_end|>",
}
PYTHON = ("minicpm", "pythonic")


def written(name: str, called: str, arguments: dict[str, Any]) -> str:
    """A call in the format `name`, as its grammar has it."""
    text = WRITERS[name](called, arguments) + ENDS.get(name, "")
    if name in ("internlm", "llama3_json"):
        text = text.replace('"arguments"', '"parameters"')
    return text.replace("'", '"') if name in PYTHON else text


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_calls_as_templates_write_them_are_allowed(name: str) -> None:
    lark = grammar(Formats(name), TOOLS, parallel=False)
    assert accepts(lark, written(name, "get_weather", {"city": "Bern", "days": 3}))
    assert accepts(lark, written(name, "now", {}))
    assert not accepts(lark, written(name, "get_weather", {"days": 3}))
    assert not accepts(lark, written(name, "get_weather", {"city": "Bern", "days": "x"}))
    assert not accepts(lark, written(name, "g", {}))


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_names_of_any_characters(name: str) -> None:
    names = ["a'b", 'a"b', "a\\b", "a/b", "é😀", "a b", "\x01", "\u2028"]
    if name not in PYTHON:
        properties = {key: {"type": kind} for key, kind in zip(names, ["string", "integer"] * 4, strict=True)}
        matcher(grammar(Formats(name), [Tool("f", {"properties": properties})], parallel=True))
    for key in names:
        matcher(grammar(Formats(name), [Tool(key)], parallel=True))


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_optional_arguments_in_their_order(name: str) -> None:
    kinds = {key: {"type": "integer"} for key in "abcd"}
    for required in ([], ["b"]):
        lark = grammar(Formats(name), [Tool("f", {"properties": kinds, "required": required})], parallel=False)
        for keys in (
            ("b", "ab", "bc", "abcd", "bd") if name not in PYTHON or not required else ("b", "ba", "bd", "bacd")
        ):
            assert accepts(lark, written(name, "f", dict.fromkeys(keys, 1)))
        assert accepts(lark, written(name, "f", {"a": 1, "c": 2})) == (required == [])
        assert accepts(lark, written(name, "f", {})) == (required == [])


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_hostile_schemas_are_refused(name: str) -> None:
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"properties": {"a": deep}}
    definitions = {"x": {"description": "x" * 100_000}}
    references = {
        "properties": {f"p{i}": {"type": "object", "$ref": "#/$defs/x"} for i in range(100)},
        "$defs": definitions,
    }
    for schema in (deep, references | {"description": "x" * 1_000_000}):
        with pytest.raises(InvalidRequest):
            grammar(
                Formats(name),
                [Tool("f", {"properties": {"a": {"type": "object", **schema}}, "$defs": definitions})],
                parallel=True,
            )


def test_several_calls_only_if_they_are_wanted() -> None:
    calls = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert accepts(grammar(Formats("hermes"), TOOLS, parallel=True), f"{calls}\n{calls}")
    assert not accepts(grammar(Formats("hermes"), TOOLS, parallel=False), f"{calls}\n{calls}")


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_special_tokens_are_tokens(name: str) -> None:
    markers = marker_tokens(Formats(name))
    lark = grammar(Formats(name), TOOLS, parallel=True, special_tokens={mark: i for i, mark in enumerate(markers)})
    matcher(lark)
    assert not any(json.dumps(marker, ensure_ascii=False) in lark for marker in markers)


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_unknown_keywords_are_refused_for_strict_tools_only(name: str) -> None:
    schema = {"properties": {"a": {"type": "object", "unevaluatedProperties": {"not": {"type": "string"}}}}}
    matcher(grammar(Formats(name), [Tool("f", schema)], parallel=False))
    with pytest.raises((ValueError, AssertionError)):
        matcher(grammar(Formats(name), [Tool("f", schema, strict=True)], parallel=False))


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_text_with_calls_or_without(name: str) -> None:
    """Not required: any text, but what begins as a call is a call of these tools."""

    def free(text: str, **options: bool) -> bool:
        return accepts(grammar(Formats(name), TOOLS, **{"parallel": True, "required": False, **options}), text)

    before = {
        "llama3_json": "",
        "pythonic": "",
        "gpt_oss": "<|channel|>commentary<|message|>So.<|end|><|start|>assistant",
    }
    text = "<|channel|>final<|message|>a {b} [c] <d" if name == "gpt_oss" else "a {b} [c] <d"
    good, bad = (
        written(name, "get_weather", {"city": "Bern"}),
        written(name, "get_weather", {"city": "Bern", "days": "x"}),
    )
    assert free(text)
    assert free(text, parallel=False)
    assert free(before.get(name, "So.\n") + good)
    assert free(before.get(name, "So.\n") + good, parallel=False)
    assert not free(before.get(name, "So.\n") + bad)
    assert not free(before.get(name, "So.\n") + bad, parallel=False)


def test_calls_may_follow_the_end_of_reasoning_in_another_line() -> None:
    calls = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert accepts(grammar(Formats("hermes", "qwen3"), TOOLS, parallel=True), f"\n\n{calls}")
    assert not accepts(grammar(Formats("hermes"), TOOLS, parallel=True), f"\n\n{calls}")
