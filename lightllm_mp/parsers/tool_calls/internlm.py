"""InternLM 2 and 2.5: <|action_start|><|plugin|>{"name": "f", "parameters": {...}}<|action_end|>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt, json_call
from lightllm_mp.parsers.lark import LarkRules, choice
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

BEGIN, PLUGIN, END = "<|action_start|>", "<|plugin|>", "<|action_end|>"


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    while (yield from reader.until((BEGIN,), writer.content)):
        if (yield from attempt(reader, writer, _call(reader, writer), BEGIN)):
            yield from reader.spaces()
            yield from reader.starts(END)


def _call(reader: TextReader, writer: DeltaWriter) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.expect(PLUGIN)
    yield from reader.spaces()
    yield from json_call(reader, writer)


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    body = choice([rules.json_call(tool, "parameters") for tool in tools])
    call = rules.rule("call", rules.opening(BEGIN), rules.marker(PLUGIN), '"\\n"', body, rules.marker(END))
    return rules.opened(call, "")


INTERNLM = CallFormat((BEGIN, PLUGIN, END), parse, calls)
