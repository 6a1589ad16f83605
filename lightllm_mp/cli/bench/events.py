"""A fast counter of server-sent events. Only the last event of an answer is decoded."""

from __future__ import annotations

from typing import Any

import msgspec

END = b"\n\n"


class EventCounter:
    """Counts events in chunks of a stream. A chunk may end anywhere and may hold many events."""

    def __init__(self) -> None:
        self.last = b""
        """Data of the last complete event."""
        self.id = b"0"
        """Id of the last complete event that has one: where the stream can be resumed."""
        self._rest = b""

    def feed(self, chunk: bytes) -> int:
        """The number of data events that `chunk` completes, without comments and the final `[DONE]`."""
        *events, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(END)
        count = 0
        for event in events:
            for line in event.split(b"\n"):
                data = line.removeprefix(b"data:").strip()
                if line.startswith(b"id:"):
                    self.id = line.removeprefix(b"id:").strip()
                elif line.startswith(b"data:") and data != b"[DONE]":
                    count += 1
                    self.last = data
        return count


def failure(answer: dict[str, Any]) -> str | None:
    """The error in this last event or whole answer; None if the request succeeded."""
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
    """The JSON object in `data`. If there is none, an object that names the error."""
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return {"error": "the answer is not JSON"}
    return value if isinstance(value, dict) else {"error": "the answer is not a JSON object"}
