"""Runs parsers over tables of cases: whole, split at every place, in single characters, and split at random."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from random import Random
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lightllm_mp.parsers.deltas import Content, Delta, Reasoning, ToolArguments, ToolCallBegin
from lightllm_mp.parsers.formats import Formats
from lightllm_mp.parsers.reply import reply_parser
from lightllm_mp.parsers.tool import Tool

TOOLS = (
    Tool(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "share": {"type": "number"},
                "now": {"type": "boolean"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "where": {"$ref": "#/$defs/Where"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "any": {},
                "unit": {"enum": ["C", "F"]},
                "mixed": {"type": ["integer", "string"]},
            },
            "required": ["city"],
            "$defs": {"Where": {"type": "object", "properties": {"x": {"type": "number"}}}},
        },
    ),
    Tool("now", None),
    Tool("f", {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}),
)


class Case(Struct, frozen=True):
    """`text`: what the model writes. `calls`: (name, arguments); a text as arguments is the JSON text, valid or not."""

    text: str
    content: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    reasoning: str = ""
    thinking: bool = False


def read(
    formats: Formats, pieces: Iterable[str], *, thinking: bool = False, tools: Sequence[Tool] = TOOLS
) -> list[Delta]:
    parser = reply_parser(formats, tools, thinking=thinking, call_ids=lambda index: f"call_{index}")
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish()


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Neighbours of one kind made one."""
    sums: list[Delta] = []
    for _, group in groupby(deltas, key=lambda delta: (type(delta), getattr(delta, "index", 0))):
        first, *others = group
        if others:
            first = replace(first, text="".join(delta.text for delta in (first, *others)))
        sums.append(first)
    return sums


def answer(deltas: Iterable[Delta]) -> tuple[str, str, list[tuple[str, str]]]:
    """Reasoning, content, and the calls with the text of their arguments."""
    reasoning, content, calls = "", "", list[tuple[str, str]]()
    for delta in deltas:
        match delta:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case ToolCallBegin(index, name, id):
                assert index == len(calls)
                assert id == f"call_{index}" or id.startswith(f"functions.{name}:")  # Kimi gives its own
                calls.append((name, ""))
            case ToolArguments(index, text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    return reasoning, content, calls


def check(formats: Formats, case: Case) -> None:
    """The case's answer, from every split of its text."""
    whole = joined(read(formats, [case.text], thinking=case.thinking))
    reasoning, content, calls = answer(whole)
    assert (reasoning, content) == (case.reasoning, case.content), whole
    assert [name for name, _ in calls] == [name for name, _ in case.calls], whole
    for (_, text), (_, expected) in zip(calls, case.calls, strict=True):
        if isinstance(expected, str):
            assert text == expected
        else:
            assert json.loads(text) == expected
    for pieces in splits(case.text):
        assert joined(read(formats, pieces, thinking=case.thinking)) == whole, pieces


def splits(text: str) -> Iterator[list[str]]:
    """In two at every place, in single characters, and some at random."""
    yield from ([text[:place], text[place:]] for place in range(len(text) + 1))
    yield list(text)
    random = Random(text)
    yield from (random_split(text, random) for _ in range(20))


def random_split(text: str, random: Random) -> list[str]:
    places = sorted(random.choices(range(len(text) + 1), k=random.randint(1, 12)))
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
