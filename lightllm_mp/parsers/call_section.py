"""Reads calls that stand between two markers each, and all of them between two more markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_call import attempt
from lightllm_mp.parsers.text_reader import Parsing, TextReader


class SectionMarkers(NamedTuple):
    """`calls_begin`, `calls_end` and `end` may be missing in the text."""

    calls_begin: str
    calls_end: str
    begin: str
    end: str


def call_sections(
    reader: TextReader,
    writer: DeltaWriter,
    call: Callable[[TextReader, DeltaWriter], Parsing[None]],
    by: SectionMarkers,
) -> Parsing[None]:
    """Reads a whole answer; text outside of calls is content. `call` reads the text between `begin` and `end`."""
    while marker := (yield from reader.until((by.calls_begin, by.begin), writer.content)):
        first = call(reader, writer) if marker == by.begin else _behind(reader, by.begin, call(reader, writer))
        called = yield from attempt(reader, writer, first, marker)
        while called:
            yield from reader.spaces()
            yield from reader.starts(by.end)
            yield from reader.spaces()
            what = yield from reader.starts(by.begin, by.calls_end)
            called = what == by.begin and (yield from attempt(reader, writer, call(reader, writer), by.begin))


def _behind(reader: TextReader, begin: str, call: Parsing[None]) -> Parsing[None]:
    yield from reader.spaces()
    yield from reader.expect(begin)
    yield from call
