"""The formats of tool calls, by the names of --tool-call-parser."""

from __future__ import annotations

from lightllm_mp.parsers.tool_calls.call_format import CallFormat
from lightllm_mp.parsers.tool_calls.hermes import HERMES

CALL_FORMATS: dict[str, CallFormat] = {
    "hermes": HERMES,
}
