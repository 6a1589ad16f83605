"""Server-sent events, counted cheaply: only the last event of an answer is decoded."""

from __future__ import annotations

from typing import Any

import msgspec

END = b"\n\n"


class EventCounter:
    """Feed it what arrives; events may be split anywhere or come many at a time."""

    def __init__(self) -> None:
        self.last = b""
        """Data of the last complete event."""
        self._rest = b""

    def feed(self, chunk: bytes) -> int:
        """How many data events `chunk` completes. Comments and the closing `[DONE]` are none."""
        *events, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(END)
        count = 0
        for event in events:
            data = event.removeprefix(b"data:").strip()
            if event.startswith(b"data:") and data != b"[DONE]":
                count += 1
                self.last = data
        return count


def failure(answer: dict[str, Any]) -> str | None:
    """Why this last event, or whole answer, is no success; None if it is one."""
    error = answer.get("error")
    if error:
        return f"error: {error.get('message', error) if isinstance(error, dict) else error}"
    reasons = answer.get("finish_reason")
    for reason in reasons if isinstance(reasons, list) else [reasons]:
        if reason in ("abort", "error"):
            return f"finish_reason {reason}"
    if answer.get("finished") is False:
        return "the stream ended early"
    return None


def decode(data: bytes) -> dict[str, Any]:
    """A JSON object; anything else is empty, as an answer without what is looked for in it."""
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return {"error": "the answer is no JSON"}
    return value if isinstance(value, dict) else {"error": "the answer is no JSON object"}
