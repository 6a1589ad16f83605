"""The engine's work in each of the last seconds, from two stats pages in shared memory, without a message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from time import monotonic

from lightllm_mp.actors.http.context import unix_time
from lightllm_mp.actors.http.live.snapshot_schema import HistoryPoint

POINTS = 300

Numbers = Mapping[str, float]
NAMES = ("steps", "generation_tokens", "prefill_tokens", "decode_tokens", "step_rows")
"""Counters of the router."""


class LiveHistory:
    """`router` and `worker` read the pages of the router and of the first worker; both are empty before their first
    step. About 100 µs a second."""

    def __init__(self, router: Callable[[], Numbers], worker: Callable[[], Numbers]) -> None:
        self._router, self._worker = router, worker
        self._points: deque[HistoryPoint] = deque(maxlen=POINTS)
        self._zero = unix_time() - monotonic()
        self._last, self._counts = 0.0, dict[str, float]()

    @property
    def now(self) -> float:
        """Seconds since 1970, of a clock that never jumps."""
        return self._zero + monotonic()

    def router(self) -> Numbers:
        return self._router()

    def last(self, most: int = POINTS) -> list[HistoryPoint]:
        """The last points, the oldest first."""
        return list(islice(self._points, max(0, len(self._points) - most), None))

    def sample(self) -> None:
        """Once a second: add a point."""
        now, router, worker = self.now, self._router(), self._worker()
        counts = {name: router.get(name, 0.0) for name in NAMES}
        counts |= {f"worker.{name}": worker.get(name, 0.0) for name in ("steps", "step_seconds")}
        if self._last and now > self._last:
            self._points.append(self._point(now, {name: self._growth(name, counts[name]) for name in counts}, router))
        self._last, self._counts = now, counts

    def _growth(self, name: str, value: float) -> float:
        """Since the last sample. The page of a process that was replaced begins again."""
        before = self._counts.get(name, 0.0)
        return value - before if value >= before else value

    def _point(self, now: float, grown: Mapping[str, float], router: Numbers) -> HistoryPoint:
        seconds, steps = now - self._last, max(grown["steps"], 1.0)
        return HistoryPoint(
            at=round(now, 2),
            generated=round(grown["generation_tokens"] / seconds, 1),
            prompt=round(grown["prefill_tokens"] / seconds, 1),
            steps=round(grown["steps"] / seconds, 1),
            step_ms=round(1e3 * grown["worker.step_seconds"] / max(grown["worker.steps"], 1.0), 2),
            rows=round(grown["step_rows"] / steps, 1),
            prefill_tokens=round(grown["prefill_tokens"] / steps, 1),
            decode_tokens=round(grown["decode_tokens"] / steps, 1),
            running=int(router.get("running", 0)),
            waiting=int(router.get("waiting", 0)),
            kv_used=int(router.get("kv_used", 0)),
            kv_cached=int(router.get("kv_cached", 0)),
        )
