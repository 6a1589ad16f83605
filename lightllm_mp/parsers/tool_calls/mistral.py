"""Mistral: [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...], and since 2025 [TOOL_CALLS]f[ARGS]{...}."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt, json_call
from lightllm_mp.parsers.json_text import json_object
from lightllm_mp.parsers.lark import LarkRules, choice, literal
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

CALLS, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.\-]*")


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while (yield from reader.until((CALLS,), writer.content)):
        spaces: list[str] = []
        char = yield from reader.spaces(spaces.append)
        read = "".join((CALLS, *spaces))
        if char == "[":
            yield from _list(reader, writer, read)
        elif char == "{":
            yield from attempt(reader, writer, json_call(reader, writer), read)
        else:
            yield from attempt(reader, writer, _named_call(reader, writer), read)


def _list(reader: TextReader, writer: DeltaWriter, read: str) -> Parsing[None]:
    called = yield from attempt(reader, writer, _first_item(reader, writer), read)
    while called:
        what = yield from reader.spaces()
        if what in ("]", ","):
            reader.take(1)
        called = what == "," and (yield from attempt(reader, writer, _item(reader, writer)))


def _first_item(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.expect("[")
    yield from _item(reader, writer)


def _item(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.spaces()
    yield from json_call(reader, writer)


def _named_call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    writer.name((yield from reader.token(_NAME)))
    if (yield from reader.starts(CALL_ID)):
        yield from reader.token(_NAME)
    yield from reader.starts(ARGUMENTS)
    yield from json_object(reader, writer.arguments)
    writer.end_call()


def list_calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    body = choice([rules.json_call(tool, "arguments") for tool in tools])
    call = rules.rule("call", body)
    calls = rules.several(call, '", "')
    return f'{rules.opening(CALLS)} " "? "[" {calls} "]"'


def named_calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    bodies = [
        rules.rule(f"body_{index}", literal(tool.name), rules.marker(ARGUMENTS), rules.arguments(tool))
        for index, tool in enumerate(tools)
    ]
    call = rules.rule("call", rules.opening(CALLS), choice(bodies))
    return rules.opened(call, "")


MISTRAL_LIST = CallFormat((CALLS,), parse, list_calls)
MISTRAL = CallFormat((CALLS, CALL_ID, ARGUMENTS), parse, named_calls)
