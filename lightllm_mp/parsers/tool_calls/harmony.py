"""gpt-oss: an answer of messages, each with its channel, and the tool that it goes to.

<|channel|>analysis<|message|>thought<|end|><|start|>assistant<|channel|>final<|message|>text<|return|>
<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.deltas import Content, Reasoning
from lightllm_mp.parsers.json_call import attempt
from lightllm_mp.parsers.json_text import json_object
from lightllm_mp.parsers.lark import ANY, LarkRules, choice, literal
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_format import CallFormat

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
FINAL = f"{CHANNEL}final{MESSAGE}"
_FUNCTIONS, _TO = "functions.", "to="
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


def parse(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool]) -> Parsing[None]:
    header: list[str] = []
    marker = yield from _beginning(reader, writer, header)
    while marker:
        header.append(marker)
        marker = yield from reader.until((MESSAGE, START), header.append)
        if marker == MESSAGE:
            marker = yield from _message(reader, writer, tools, "".join(header))
        header.clear()
        while marker in (END, CALL, RETURN):
            marker = yield from reader.until((START, CHANNEL), writer.content)


def _beginning(reader: TextReader, writer: DeltaWriter, header: list[str]) -> Parsing[str | None]:
    """Reads up to the first marker and returns it. The prompt ends with the role; a recipient may follow and goes to
    `header`; any other text is content."""
    before: list[str] = []
    yield from reader.spaces(before.append)
    if not (yield from reader.starts(_TO)):
        writer.content("".join(before))
        return (yield from reader.until((START, CHANNEL), writer.content))
    before.append(_TO)
    marker = yield from reader.until((START, CHANNEL), before.append)
    if marker == CHANNEL:
        header += before
    else:
        writer.content("".join(before))
    return marker


def _message(reader: TextReader, writer: DeltaWriter, tools: Mapping[str, Tool], header: str) -> Parsing[str | None]:
    """Reads the text of a message. Returns the marker behind it."""
    channel = _CHANNEL.search(header)
    recipient = _RECIPIENT.search(header)
    name = recipient[1].removeprefix(_FUNCTIONS) if recipient else ""
    thought = channel is not None and channel[1] == "analysis"
    if recipient and tools and (name in tools or name != recipient[1]):
        yield from attempt(reader, writer, _call(reader, writer, name), header + MESSAGE)
        sink = writer.content
    else:
        writer.part(Reasoning if thought else Content)
        sink = writer.reasoning if thought else writer.content
    return (yield from reader.until((START, END, CALL, RETURN), sink))


def _call(reader: TextReader, writer: DeltaWriter, name: str) -> Parsing[None]:
    writer.name(name)
    if (yield from reader.spaces()) not in ("<", ""):
        yield from json_object(reader, writer.arguments)
        yield from reader.spaces()
    writer.end_call()


def calls(rules: LarkRules, tools: Sequence[Tool]) -> str:
    """One call, since a call ends the answer; or an answer if text is allowed. The model may reason before it."""
    bodies = [
        rules.rule(
            f"body_{index}",
            literal(f"commentary to=functions.{tool.name} "),
            rules.marker(CONSTRAIN),
            literal("json"),
            rules.marker(MESSAGE),
            rules.arguments(tool),
            rules.marker(CALL) + "?",
        )
        for index, tool in enumerate(tools)
    ]
    before = ("analysis",) if rules.required else ("analysis", "commentary")
    if not rules.required:
        bodies.append(f'"final" {rules.marker(MESSAGE)} {ANY}')
    message = rules.rule(
        "message",
        f"{rules.marker(CHANNEL)} {choice([literal(channel) for channel in before])} {rules.marker(MESSAGE)}",
        f'{rules.until(END)} {rules.marker(START)} "assistant"',
    )
    return f"{message}* {rules.marker(CHANNEL)} {choice(bodies)}"


HARMONY = CallFormat((START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN), parse, calls)
