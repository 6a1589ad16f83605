"""GLM 4.5 and later: <tool_call>f<arg_key>a</arg_key><arg_value>value</arg_value></tool_call>.

Up to 4.6, newlines separate the parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt
from lightllm_mp.parsers.lark import LarkRules, choice, literal
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat
from lightllm_mp.parsers.typed_arguments import TypedArguments

BEGIN, END = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"
_NAME = re.compile(r"[^\s<>]*")
_KEY = re.compile(r"[^<>\n]*")


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while (yield from reader.until((BEGIN,), writer.content)):
        yield from attempt(reader, writer, _call(reader, writer, tools), BEGIN)


def _call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from reader.spaces()
    name = yield from reader.token(_NAME)
    writer.name(name)
    arguments = TypedArguments(writer, tools.get(name))
    yield from reader.spaces()
    what = yield from reader.expect(KEY, END)
    while what == KEY:
        key = yield from reader.token(_KEY)
        yield from reader.expect(KEY_END)
        yield from reader.spaces()
        yield from reader.expect(VALUE)
        arguments.key(key.strip())
        what = yield from arguments.read(reader, (VALUE_END,), (KEY, END))
    arguments.end()


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    return _calls(rules, tools, "\n")


def calls_47(rules: LarkRules, tools: Sequence[Tool]) -> str:
    return _calls(rules, tools, "")


def _calls(rules: LarkRules, tools: Sequence[Tool], gap: str) -> str:
    """`gap` stands between the parts."""
    between = literal(gap)

    def begin(name: str) -> str:
        key = f"{rules.marker(KEY)} {literal(name)} {rules.marker(KEY_END)}"
        return f"{between} {key} {between} {rules.marker(VALUE)}"

    bodies = [
        rules.rule(f"body_{index}", literal(tool.name), *rules.parameters(tool, begin, VALUE_END), between)
        for index, tool in enumerate(tools)
    ]
    call = rules.rule("call", rules.opening(BEGIN), choice(bodies), rules.marker(END))
    return rules.opened(call, between)


MARKERS = (BEGIN, END, KEY, KEY_END, VALUE, VALUE_END)
GLM = CallFormat(MARKERS, parse, calls)
GLM47 = CallFormat(MARKERS, parse, calls_47)
