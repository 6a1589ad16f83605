"""The parser of one answer: text in pieces goes in, deltas come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.deltas import Delta
from lightllm_mp.parsers.formats import Formats
from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS
from lightllm_mp.parsers.tool_calls.harmony import HARMONY


class ReplyParser:
    """Reads one answer. The sum of its deltas does not depend on where the text is split.

    A call that is malformed before its arguments begin is content; one that goes wrong later ends there, and the rest
    is content. An answer that ends within reasoning is reasoning.
    """

    def __init__(
        self, formats: Formats, tools: Sequence[Tool], *, thinking: bool, call_ids: Callable[[int], str]
    ) -> None:
        self._reader = TextReader()
        self._writer = DeltaWriter(self._reader, call_ids)
        self._parsing = self._parse(formats, tools, thinking)
        next(self._parsing)

    def push(self, text: str) -> list[Delta]:
        """The deltas that `text`, the next piece of the answer, completes."""
        self._reader.feed(text)
        next(self._parsing, None)
        return self._writer.take()

    def finish(self) -> list[Delta]:
        """The deltas that waited for more text. The answer has ended."""
        self._reader.ended = True
        next(self._parsing, None)
        self._writer.finish()
        return self._writer.take()

    def _parse(self, formats: Formats, tools: Sequence[Tool], thinking: bool) -> Parsing[None]:
        reader, writer = self._reader, self._writer
        by_name = {tool.name: tool for tool in tools}
        if formats.harmony:
            yield from HARMONY.parse(reader, writer, by_name)
        else:
            if formats.reasoning:
                yield from REASONING_FORMATS[formats.reasoning].parse(reader, writer, thinking)
            if formats.tool_calls and tools:
                yield from CALL_FORMATS[formats.tool_calls].parse(reader, writer, by_name)
        yield from reader.until((), writer.content)


def reply_parser(
    formats: Formats, tools: Sequence[Tool], *, thinking: bool, call_ids: Callable[[int], str]
) -> ReplyParser:
    """The parser of one answer.

    `tools`: those that the model may call; without any, calls are content. `thinking`: the prompt ends within reasoning
    (`formats.opens_reasoning`). `call_ids`: the id of call 0, 1, ....
    """
    return ReplyParser(formats, tools, thinking=thinking, call_ids=call_ids)
