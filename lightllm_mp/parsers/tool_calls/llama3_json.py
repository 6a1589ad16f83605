"""Llama 3.1 to 4: {"name": "f", "parameters": {...}}, several after each other, with or without ";" between them.

Nothing but its keys, and a name among the tools, tells such a call from other JSON; so it is one only at the beginning
of the answer, or after <|python_tag|> (Llama 4: between <|python_start|> and <|python_end|>).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt, json_call
from lightllm_mp.parsers.lark import LarkRules, choice
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

TAGS, END = ("<|python_tag|>", "<|python_start|>"), "<|python_end|>"


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    if (yield from reader.spaces(writer.content)) == "{":
        yield from _calls(reader, writer, tools, "")
    while tag := (yield from reader.until(TAGS, writer.content)):
        yield from _calls(reader, writer, tools, tag)


def _calls(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool], read: str) -> Parsing[None]:
    called = yield from attempt(reader, writer, _call(reader, writer, tools), read)
    while called:
        yield from reader.starts(END)
        called = yield from attempt(reader, writer, _next_call(reader, writer, tools))


def _call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from reader.spaces()
    yield from json_call(reader, writer, tools)


def _next_call(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.starts(";")
    yield from reader.spaces()
    yield from reader.starts(*TAGS)
    yield from _call(reader, writer, tools)


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    body = choice([rules.json_call(tool, "parameters") for tool in tools])
    call = rules.rule("call", body)
    return rules.several(call, '"; "')


LLAMA3_JSON = CallFormat((*TAGS, END), parse, calls, bare="{")
