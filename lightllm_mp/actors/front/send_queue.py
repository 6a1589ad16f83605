"""Sends the front's messages at once, or in order as soon as the lane has room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lightllm_mp.messages import Wire

Send = Callable[[Wire], bool]


class SendQueue:
    """A lane and the messages that wait for room in it, in order."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: deque[Wire] = deque()

    def offer(self, message: Wire) -> bool:
        """Send now or not at all; False: not sent."""
        return not self._held and self._send(message)

    def push(self, message: Wire) -> None:
        """Send now or as soon as the lane has room."""
        if not self.offer(message):
            self._held.append(message)

    def flush(self) -> None:
        while self._held and self._send(self._held[0]):
            self._held.popleft()

    def clear(self) -> None:
        self._held.clear()
