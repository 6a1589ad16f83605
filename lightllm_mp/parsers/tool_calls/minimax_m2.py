"""MiniMax-M2: <invoke name="f"><parameter name="a">value</parameter></invoke> within <minimax:tool_call>."""

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

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, INVOKE_END = '<invoke name="', "</invoke>"
PARAMETER, PARAMETER_END = '<parameter name="', "</parameter>"
NAME_END = '">'
_NAME = re.compile(r'[^<>\n"]*')


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while (yield from reader.until((BEGIN,), writer.content)):
        called = yield from attempt(reader, writer, _first_call(reader, writer, tools), BEGIN)
        while called:
            yield from reader.spaces()
            what = yield from reader.starts(INVOKE, END)
            called = what == INVOKE and (yield from attempt(reader, writer, _call(reader, writer, tools), INVOKE))


def _first_call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.expect(INVOKE)
    yield from _call(reader, writer, tools)


def _call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    name = yield from reader.name(_NAME, NAME_END)
    writer.name(name)
    arguments = TypedArguments(writer, tools.get(name))
    yield from reader.spaces()
    what = yield from reader.expect(PARAMETER, INVOKE_END)
    while what == PARAMETER:
        arguments.key((yield from reader.name(_NAME, NAME_END)))
        what = yield from arguments.read(reader, (PARAMETER_END,), (PARAMETER, INVOKE_END))
    arguments.end()


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    bodies = [
        rules.rule(
            f"body_{index}",
            literal(f"{INVOKE}{tool.name}{NAME_END}\n"),
            *rules.parameters(tool, lambda name: literal(PARAMETER + name + NAME_END), PARAMETER_END + "\n"),
            literal(INVOKE_END + "\n"),
        )
        for index, tool in enumerate(tools)
    ]
    call = rules.rule("call", choice(bodies))
    return f'{rules.opening(BEGIN)} "\\n" {rules.several(call, "")} {rules.marker(END)}'


MINIMAX_M2 = CallFormat((BEGIN, END), parse, calls)
