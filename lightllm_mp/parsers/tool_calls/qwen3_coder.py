"""Qwen3-Coder and Qwen 3.5: <tool_call><function=f><parameter=a>value</parameter></function></tool_call>."""

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
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^<>\n]*")


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while marker := (yield from reader.until((BEGIN, FUNCTION), writer.content)):
        if (yield from attempt(reader, writer, _call(reader, writer, tools, marker), marker)):
            yield from reader.spaces()
            yield from reader.starts(END)


def _call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool], marker: str) -> Parsing[None]:
    if marker == BEGIN:
        yield from reader.spaces()
        yield from reader.expect(FUNCTION)
    name = yield from reader.name(_NAME, ">")
    writer.name(name)
    arguments = TypedArguments(writer, tools.get(name))
    yield from reader.spaces()
    what = yield from reader.expect(PARAMETER, FUNCTION_END, END)
    while what == PARAMETER:
        arguments.key((yield from reader.name(_NAME, ">")))
        yield from reader.starts("\n")
        what = yield from arguments.read(reader, ("\n" + PARAMETER_END, PARAMETER_END), (PARAMETER, FUNCTION_END, END))
    arguments.end()


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    bodies = [
        rules.rule(
            f"body_{index}",
            literal(f"\n<function={tool.name}>\n"),
            *rules.parameters(tool, lambda name: literal(f"<parameter={name}>\n"), "\n</parameter>\n"),
            literal("</function>\n"),
        )
        for index, tool in enumerate(tools)
    ]
    call = rules.rule("call", rules.opening(BEGIN), choice(bodies), rules.marker(END))
    return rules.opened(call, '"\\n"')


QWEN3_CODER = CallFormat((BEGIN, END), parse, calls)
