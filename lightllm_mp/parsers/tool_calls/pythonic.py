"""Llama 3.2 and 4: [f(a=1), g(b="x")], with or without <|python_start|> and <|python_end|>.

Without the markers, nothing but a name among the tools tells calls from other text; so they are calls only at the
beginning of the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt
from lightllm_mp.parsers.lark import LarkRules, choice
from lightllm_mp.parsers.python_text import python_call
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

BEGIN, END = "<|python_start|>", "<|python_end|>"


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    if (yield from reader.spaces(writer.content)) == "[":
        yield from _list(reader, writer, tools, "")
    while (yield from reader.until((BEGIN,), writer.content)):
        yield from _list(reader, writer, tools, BEGIN)


def _list(reader: TextReader, writer: DeltaWriter, names: Collection[str], read: str) -> Parsing[None]:
    called = yield from attempt(reader, writer, _first_call(reader, writer, names), read)
    while called:
        what = yield from reader.spaces()
        if what in ("]", ","):
            reader.take(1)
        called = what == "," and (yield from attempt(reader, writer, _call(reader, writer, names)))
        if what == "]":
            yield from reader.spaces()
            yield from reader.starts(END)


def _first_call(reader: TextReader, writer: DeltaWriter, names: Collection[str]) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.expect("[")
    yield from _call(reader, writer, names)


def _call(reader: TextReader, writer: DeltaWriter, names: Collection[str]) -> Parsing[None]:
    yield from reader.spaces()
    yield from python_call(reader, writer, names)


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    call = rules.rule("call", choice([rules.python_call(tool) for tool in tools]))
    several = rules.several(call, '", "')
    return f'"[" {several} "]"'


PYTHONIC = CallFormat((BEGIN, END), parse, calls, bare="[")
