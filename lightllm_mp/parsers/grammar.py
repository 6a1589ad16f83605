"""The grammar of valid tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.parsers.formats import Formats
from lightllm_mp.parsers.lark import ANY, LarkRules
from lightllm_mp.parsers.tool import Tool
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS


def grammar(
    formats: Formats,
    tools: Sequence[Tool],
    *,
    parallel: bool,
    required: bool = True,
    answer: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> str:
    """llguidance's Lark of an answer that calls `tools`: once or, with `parallel`, more often.

    `required`: the answer is calls only; else it may be text, or text and calls, and each call that begins is valid.
    `answer`: the JSON schema of an answer that is not a call.
    `special_tokens`: the ids of those of `formats.marker_tokens` that are special tokens of the vocabulary.
    The grammar begins behind `formats.reasoning_end`; that of harmony begins with the answer and lets the model think.
    InvalidRequest if the tools' schemas are too large or too deep.
    """
    assert formats.tool_calls is not None
    assert tools
    rules = LarkRules(special_tokens or {}, parallel=parallel, required=required)
    called = CALL_FORMATS[formats.tool_calls]
    try:
        calls = called.calls(rules, tools)
    except RecursionError:
        raise InvalidRequest("a tool's schema is nested too deeply", param="tools") from None
    if formats.harmony:
        start = calls
    elif required:
        start = f"/\\n{{0,2}}/ {calls}" if formats.reasoning else calls
    elif answer is not None:
        start = f"{calls} | {rules.json(answer, strict=True)}"
    elif called.bare:
        start = f"{calls} | /\\s*[^\\s\\{called.bare}](?s:.*)/ | "
    else:
        start = f"({calls})? {ANY}" if parallel else f"{calls} | {ANY}"
    rules.rule("start", start)
    return rules.text()
