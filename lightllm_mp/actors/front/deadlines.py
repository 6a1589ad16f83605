"""Request deadlines: one to start by and one to finish by. The front fails a request that misses either."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.errors import DeadlineExceeded, EngineError, QueueTimeout

GiveUp = Callable[[LiveRequest, EngineError], None]


class Deadlines:
    """One timer per request. `queue_seconds`: how long a request may wait to be scheduled; 0: no limit."""

    def __init__(self, queue_seconds: float, give_up: GiveUp, retry_after: Callable[[], float]) -> None:
        self._queue_seconds = queue_seconds
        self._give_up, self._retry_after = give_up, retry_after

    def start_by(self, deadline: float) -> float:
        """Latest start (monotonic) of a request that arrives now and must finish by `deadline`; 0: no limit."""
        latest = monotonic() + self._queue_seconds if self._queue_seconds else math.inf
        latest = min(latest, deadline)
        return latest if latest < math.inf else 0.0

    def watch(self, live: LiveRequest) -> None:
        """Start the timer for the request's next deadline, if it has one."""
        start_by = 0.0 if live.scheduled else live.request.terms.start_by
        moment = min(start_by or math.inf, live.deadline)
        if moment < math.inf:
            live.timer = asyncio.get_running_loop().call_at(moment, self._late, live)

    def _late(self, live: LiveRequest) -> None:
        if live.error is not None or not live.open:
            return
        now = monotonic()
        if now >= live.deadline:
            self._give_up(live, DeadlineExceeded("the answer was not complete in the time of X-Request-Timeout"))
        elif not live.scheduled and now >= live.request.terms.start_by:
            error = QueueTimeout("the request has waited too long for its turn", retry_after=self._retry_after())
            self._give_up(live, error)
        else:
            self.watch(live)
