"""Kimi K2: <|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>, all between two markers.

The model numbers the calls of a chat. `functions.f:0` is the call's id, which its chat template writes back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.call_section import SectionMarkers, call_sections
from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_text import json_object
from lightllm_mp.parsers.lark import LarkRules, choice, literal
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

CALLS_BEGIN, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
BEGIN, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SECTION = SectionMarkers(CALLS_BEGIN, CALLS_END, BEGIN, END)
_ID = re.compile(r"[^\s<>{}]*")
_PREFIX = "functions."


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from call_sections(reader, writer, _call, SECTION)


def _call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.spaces()
    call_id = yield from reader.token(_ID)
    yield from reader.spaces()
    yield from reader.expect(ARGUMENTS)
    name, _, number = call_id.removeprefix(_PREFIX).rpartition(":")
    if number.isdecimal():
        writer.name(name, call_id)
    else:
        writer.name(call_id.removeprefix(_PREFIX))
    yield from reader.spaces()
    yield from json_object(reader, writer.arguments)
    writer.end_call()


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    bodies = [
        rules.rule(
            f"body_{index}",
            literal(f"{_PREFIX}{tool.name}:"),
            "/[0-9]{1,4}/",
            rules.marker(ARGUMENTS),
            rules.arguments(tool),
        )
        for index, tool in enumerate(tools)
    ]
    call = rules.rule("call", rules.marker(BEGIN), choice(bodies), rules.marker(END))
    return f"{rules.opening(CALLS_BEGIN)} {rules.several(call, '')} {rules.marker(CALLS_END)}"


KIMI_K2 = CallFormat((CALLS_BEGIN, CALLS_END, BEGIN, ARGUMENTS, END), parse, calls)
