"""How a model writes tool calls and reasoning, found out from its chat template."""

from __future__ import annotations

from msgspec import Struct

from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS


class Formats(Struct, frozen=True, array_like=True):
    """Names of formats, keys of CALL_FORMATS and REASONING_FORMATS. None: it is text."""

    tool_calls: str | None = None
    reasoning: str | None = None


def detect_formats(template: str, model_type: str) -> Formats:
    """The formats of a model, from the markers in its chat template, else from its family (`model_type`).

    Calls of a model that has no form of its own are expected as "hermes", the most common one.
    """
    calls = "hermes"
    reasoning = "qwen3" if "</think>" in template else None
    return Formats(calls, reasoning)


def marker_tokens(formats: Formats) -> tuple[str, ...]:
    """The markers of the formats. Where they are special tokens, the parser needs them in the text."""
    calls = CALL_FORMATS[formats.tool_calls].markers if formats.tool_calls else ()
    reasoning = REASONING_FORMATS[formats.reasoning] if formats.reasoning else None
    return (*calls, *((reasoning.begin, reasoning.end) if reasoning else ()))


def opens_reasoning(formats: Formats, prompt: str) -> bool:
    """Whether `prompt` (its last characters are enough) ends within reasoning, as some templates let it begin."""
    reasoning = REASONING_FORMATS[formats.reasoning] if formats.reasoning else None
    return reasoning is not None and prompt.rstrip().endswith(reasoning.begin)
