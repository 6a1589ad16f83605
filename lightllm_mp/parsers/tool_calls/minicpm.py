"""MiniCPM 3 and 4: <|tool_call_start|>, a block of Python with a call on each line, <|tool_call_end|>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt
from lightllm_mp.parsers.lark import LarkRules, choice
from lightllm_mp.parsers.python_text import python_call
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

BEGIN, END = "<|tool_call_start|>", "<|tool_call_end|>"
FENCE = "```"


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while (yield from reader.until((BEGIN,), writer.content)):
        called = yield from attempt(reader, writer, _first_call(reader, writer), BEGIN)
        while called and (yield from reader.spaces()) not in ("", "`", "<"):
            yield from reader.starts(",", ";")
            called = yield from attempt(reader, writer, _call(reader, writer))
        if called:
            yield from reader.starts(FENCE)
            yield from reader.spaces()
            yield from reader.starts(END)


def _first_call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.starts(FENCE + "python", FENCE)
    yield from _call(reader, writer)


def _call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.spaces()
    yield from python_call(reader, writer)


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    call = rules.rule("call", choice([rules.python_call(tool) for tool in tools]), '"\\n"')
    return f'{rules.opening(BEGIN)} "\\n```python\\n" {rules.several(call, "")} "```\\n" {rules.marker(END)}'


MINICPM = CallFormat((BEGIN, END), parse, calls)
