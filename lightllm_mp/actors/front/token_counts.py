"""Requests that only count the tokens of a text."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

from lightllm_mp.errors import DeadlineExceeded, EngineError
from lightllm_mp.messages import Count, Counted, Rejected


class TokenCount:
    """A count that the tokenizer owes. Like a live request it is sent again after a repair, and may be a suspect."""

    images = ()
    first = 0.0

    def __init__(self, request: Count, *, sent: bool) -> None:
        self.request, self.sent = request, sent
        self.fruitless = 0
        self.blamed: frozenset[str] = frozenset()
        self.tokens: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> bool:
        """It was not answered."""
        return not self.tokens.done() or self.tokens.cancelled()

    def fail(self, error: EngineError) -> None:
        if not self.tokens.done():
            self.tokens.set_exception(error)


class TokenCounts:
    """All counts of a front. The tokenizer keeps nothing."""

    def __init__(self) -> None:
        self._waiting: dict[int, TokenCount] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[TokenCount]:
        return iter(self._waiting.values())

    async def result(self, count: TokenCount, deadline: float = math.inf) -> int:
        """Wait for the number of tokens until `deadline` (monotonic). Raises DeadlineExceeded, or the tokenizer's
        error."""
        self._waiting[count.request.rid] = count
        try:
            async with asyncio.timeout_at(deadline if deadline < math.inf else None):
                return await count.tokens
        except TimeoutError:
            raise DeadlineExceeded("the tokens were not counted in the time of X-Request-Timeout") from None
        finally:
            del self._waiting[count.request.rid]

    def deliver(self, message: Counted | Rejected) -> bool:
        """False: the message answers no count."""
        count = self._waiting.get(message.rid)
        if count is None:
            return False
        if isinstance(message, Rejected):
            count.fail(message.error.rebuilt())
        elif not count.tokens.done():
            count.tokens.set_result(message.tokens)
        return True
