"""The front's own metrics. Plain numbers, because the hot path adds to them for every token."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from time import monotonic

from lightllm_mp.actors.front.live_request import LiveRequest

TIMES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bucket bounds of durations, in seconds."""
LENGTHS = tuple(float(2**i) for i in range(18))
"""Bucket bounds of token counts."""


REFUSALS = ("max_live_requests", "tenant_share", "lane_full", "draining", "starting")
FAILURES = ("internal_error", "invalid_logits", "unavailable", "queue_timeout", "deadline_exceeded", "client_gone")
"""Reasons that alerts ask for. They count from 0 on: the first of a counter that was not there would be no increase."""


class Histogram:
    """Counts per bucket; `counts` has one more entry than `bounds`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Pairs (upper bound, observations up to it), as Prometheus' text format needs them."""
        total, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


class HttpMetrics:
    """The request table's observer, and the count of answered HTTP requests. Times in seconds."""

    def __init__(self) -> None:
        self.requests = self.resumptions = 0
        self.success: Counter[str] = Counter({"stop": 0, "length": 0})
        self.failure: Counter[str] = Counter(dict.fromkeys(FAILURES, 0))
        self.rejections: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self.responses: Counter[int] = Counter()
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.first = Histogram(TIMES)
        self.queue = Histogram(TIMES)
        self.prefill = Histogram(TIMES)
        self.fetch = Histogram(TIMES)
        self.gap = Histogram(TIMES)
        self.duration = Histogram(TIMES)
        self.decode = Histogram(TIMES)
        self.per_token = Histogram(TIMES)
        self.response = Histogram(TIMES)
        self.input_length = Histogram(LENGTHS)
        self.output_length = Histogram(LENGTHS)
        self.max_new_tokens = Histogram(LENGTHS)

    def accepted(self, live: LiveRequest) -> None:
        self.requests += 1
        self.max_new_tokens.add(live.request.terms.sampling.max_new_tokens)

    def resumed(self) -> None:
        self.resumptions += 1

    def refused(self, reason: str) -> None:
        self.rejections[reason] += 1

    def first_token(self, live: LiveRequest, seconds: float) -> None:
        first = max(live.answers, key=lambda answer: answer.prompt_tokens)
        self.first.add(seconds)
        if live.scheduled:
            self.queue.add(live.scheduled - live.started)
            self.prefill.add(live.first - live.scheduled)
        self.input_length.add(first.prompt_tokens)
        self.prompt_tokens += first.prompt_tokens
        self.cached_tokens += first.cached_tokens

    def tokens(self, count: int, gaps: list[float]) -> None:
        self.generation_tokens += count
        for gap in gaps:
            self.gap.add(gap)

    def ended(self, live: LiveRequest) -> None:
        """The consumer has closed `live`."""
        now = monotonic()
        if live.error is not None:
            self.failure[live.error.code] += 1
        elif live.open:
            self.failure["client_gone"] += 1
        else:
            self._succeeded(live, now)

    def answered(self, status: int, seconds: float) -> None:
        self.responses[status] += 1
        self.response.add(seconds)

    def _succeeded(self, live: LiveRequest, now: float) -> None:
        self.success[live.answers[0].finish or "stop"] += 1
        produced = sum(len(answer.ids) for answer in live.answers)
        self.duration.add(now - live.started)
        self.output_length.add(produced)
        last = max(answer.last for answer in live.answers)
        self.decode.add(last - live.first)
        if produced:
            self.per_token.add((last - live.started) / produced)
