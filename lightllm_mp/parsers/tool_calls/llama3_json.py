"""Llama 3.1 to 3.3: {"name": "f", "parameters": {...}}, several after each other with ";" between them.

Nothing but its keys, and a name among the tools, tells such a call from other JSON; so it is one only at the beginning
of the answer, or after <|python_tag|>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt, json_call
from lightllm_mp.parsers.lark import LarkRules, choice
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

TAG = "<|python_tag|>"


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    if (yield from reader.spaces(writer.content)) == "{":
        yield from _calls(reader, writer, tools, "")
    while (yield from reader.until((TAG,), writer.content)):
        yield from _calls(reader, writer, tools, TAG)


def _calls(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool], read: str) -> Parsing[None]:
    called = yield from attempt(reader, writer, _call(reader, writer, tools), read)
    while called:
        called = yield from attempt(reader, writer, _next_call(reader, writer, tools))


def _call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from reader.spaces()
    yield from json_call(reader, writer, tools)


def _next_call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.starts(";")
    yield from reader.spaces()
    yield from reader.starts(TAG)
    yield from _call(reader, writer, tools)


def calls(rules: LarkRules, tools: Sequence[Tool], parallel: bool) -> str:
    body = choice([rules.json_call(tool, "parameters") for tool in tools])
    call = rules.rule("call", body)
    return f'{call} ("; " {call})*' if parallel else call


LLAMA3_JSON = CallFormat((TAG,), parse, calls)
