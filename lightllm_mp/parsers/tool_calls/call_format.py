"""The interface of a format of tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.lark import LarkRules
from lightllm_mp.parsers.text_reader import Parsing, TextReader
from lightllm_mp.parsers.tool import Tool


class CallFormat(Struct, frozen=True):
    """`parse` reads content and calls up to the end of the text. `tools` are the request's, by name.

    `markers` may be special tokens of a vocabulary. `calls` adds the rules of calls and returns their expression.
    `bare`: the first character of calls without a marker, which then are the whole answer.
    """

    markers: tuple[str, ...]
    parse: Callable[[TextReader, DeltaWriter, Mapping[str, Tool]], Parsing[None]]
    calls: Callable[[LarkRules, Sequence[Tool]], str]
    bare: str = ""
