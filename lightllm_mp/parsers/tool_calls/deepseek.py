"""DeepSeek V3, R1 and V3.1: calls between <｜tool▁call▁begin｜> and <｜tool▁call▁end｜>, all between two more markers.

V3 and R1 write function<｜tool▁sep｜>f, and the arguments in a block of JSON; V3.1 writes f<｜tool▁sep｜>{...}.
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

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
SECTION = SectionMarkers(CALLS_BEGIN, CALLS_END, BEGIN, END)
FENCE = "```"
MARKERS = (CALLS_BEGIN, CALLS_END, BEGIN, SEPARATOR, END)
_NAME = re.compile(r"[^\s<>{}]*")


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from call_sections(reader, writer, _call, SECTION)


def _call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    name = yield from reader.token(_NAME)
    yield from reader.expect(SEPARATOR)
    if (yield from reader.spaces()) != "{":
        name = yield from reader.token(_NAME)
        yield from reader.spaces()
        yield from reader.starts(FENCE + "json", FENCE)
    writer.name(name)
    yield from json_object(reader, writer.arguments)
    yield from reader.spaces()
    yield from reader.starts(FENCE)
    writer.end_call()


def v3_calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    bodies = [
        rules.rule(
            f"body_{index}",
            literal("function"),
            rules.marker(SEPARATOR),
            literal(f"{tool.name}\n```json\n"),
            rules.arguments(tool),
            literal("\n```"),
        )
        for index, tool in enumerate(tools)
    ]
    return _section(rules, bodies, '"\\n"')


def v31_calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    bodies = [
        rules.rule(f"body_{index}", literal(tool.name), rules.marker(SEPARATOR), rules.arguments(tool))
        for index, tool in enumerate(tools)
    ]
    return _section(rules, bodies, "")


def _section(rules: LarkRules, bodies: Sequence[str], between: str) -> str:
    """The calls with their markers. `between`: the text between two of them."""
    call = rules.rule("call", rules.marker(BEGIN), choice(bodies), rules.marker(END))
    return f"{rules.opening(CALLS_BEGIN)} {rules.several(call, between)} {rules.marker(CALLS_END)}"


DEEPSEEK_V3 = CallFormat(MARKERS, parse, v3_calls)
DEEPSEEK_V31 = CallFormat(MARKERS, parse, v31_calls)
