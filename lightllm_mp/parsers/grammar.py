"""The grammar of valid tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightllm_mp.parsers.formats import Formats
from lightllm_mp.parsers.lark import LarkRules
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS


def grammar(
    formats: Formats, tools: Sequence[Tool], *, parallel: bool, special_tokens: Mapping[str, int] | None = None
) -> str:
    """llguidance's Lark of an answer that is nothing but calls: of `tools`, one or, with `parallel`, more.

    `special_tokens`: the ids of those of `formats.marker_tokens` that are special tokens of the vocabulary.
    """
    assert formats.tool_calls is not None
    assert tools
    rules = LarkRules(special_tokens or {})
    rules.rule("start", CALL_FORMATS[formats.tool_calls].calls(rules, tools, parallel))
    return rules.text()
