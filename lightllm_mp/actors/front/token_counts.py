"""Requests that only count the tokens of a text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from lightllm_mp.messages import Count, Counted, Rejected


class TokenCounts:
    """The counts that the tokenizer owes. It keeps nothing, so after a repair all are sent again."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Count, asyncio.Future[int]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Count]:
        return (request for request, _ in self._waiting.values())

    async def result(self, request: Count) -> int:
        """Wait for the number of tokens. Raises the tokenizer's error."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[request.rid] = request, future
        try:
            return await future
        finally:
            del self._waiting[request.rid]

    def deliver(self, message: Counted | Rejected) -> bool:
        """False: the message answers no count."""
        _, future = self._waiting.get(message.rid, (None, None))
        if future is None:
            return False
        if not future.done():
            if isinstance(message, Counted):
                future.set_result(message.tokens)
            else:
                future.set_exception(message.error.rebuilt())
        return True
