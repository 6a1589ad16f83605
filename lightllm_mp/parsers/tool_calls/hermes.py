"""Hermes, Qwen 2.5 and Qwen 3: <tool_call>{"name": "f", "arguments": {...}}</tool_call>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt, json_call
from lightllm_mp.parsers.lark import LarkRules, choice
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

BEGIN, END = "<tool_call>", "</tool_call>"


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while (yield from reader.until((BEGIN,), writer.content)):
        if (yield from attempt(reader, writer, _call(reader, writer), BEGIN)):
            yield from reader.spaces()
            yield from reader.starts(END)


def _call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.spaces()
    yield from json_call(reader, writer)


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    body = choice([rules.json_call(tool, "arguments") for tool in tools])
    call = rules.rule("call", rules.opening(BEGIN), '"\\n"', body, '"\\n"', rules.marker(END))
    return rules.opened(call, '"\\n"')


HERMES = CallFormat((BEGIN, END), parse, calls)
