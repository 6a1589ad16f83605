"""Requests that only the tokenizer answers: tokens counted, ids listed, ids as text."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

from lightllm_mp.errors import DeadlineExceeded, EngineError
from lightllm_mp.messages import Count, Counted, Detokenize, Detokenized, Rejected


class TokenizerCall:
    """An answer that the tokenizer owes. Like a live request it is sent again after a repair, and may be a suspect."""

    images = ()
    first = 0.0

    def __init__(self, request: Count | Detokenize, *, sent: bool) -> None:
        self.request, self.sent = request, sent
        self.fruitless = 0
        self.blamed: frozenset[str] = frozenset()
        self.answer: asyncio.Future[Counted | Detokenized] = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> bool:
        """It was not answered."""
        return not self.answer.done() or self.answer.cancelled()

    def fail(self, error: EngineError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class TokenizerCalls:
    """All calls of a front. The tokenizer keeps nothing."""

    def __init__(self) -> None:
        self._waiting: dict[int, TokenizerCall] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[TokenizerCall]:
        return iter(self._waiting.values())

    async def result(self, call: TokenizerCall, deadline: float = math.inf) -> Counted | Detokenized:
        """Wait for the answer until `deadline` (monotonic). Raises DeadlineExceeded, or the tokenizer's error."""
        self._waiting[call.request.rid] = call
        try:
            async with asyncio.timeout_at(deadline if deadline < math.inf else None):
                return await call.answer
        except TimeoutError:
            raise DeadlineExceeded("the tokenizer did not answer in the time of X-Request-Timeout") from None
        finally:
            del self._waiting[call.request.rid]

    def deliver(self, message: Counted | Detokenized | Rejected) -> bool:
        """False: the message answers no call."""
        call = self._waiting.get(message.rid)
        if call is None:
            return False
        if isinstance(message, Rejected):
            call.fail(message.error.rebuilt())
        elif not call.answer.done():
            call.answer.set_result(message)
        return True
