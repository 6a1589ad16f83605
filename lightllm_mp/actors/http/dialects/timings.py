"""Times of an answer's stages (`return_timings`), with llama.cpp's names if it has them."""

from __future__ import annotations

from msgspec import Struct

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http.live_group import LiveGroup


class Timings(Struct, frozen=True, omit_defaults=True):
    """For several answers: sums of tokens, and times from the first to the last of them. A repair counts for the stage
    that it interrupts."""

    queue_ms: float
    """From the arrival until the prefill begins: reading, tokenizing and waiting, also for images."""
    prompt_n: int
    """Tokens of the prompt."""
    cache_n: int
    """Those of them that were in the prefix cache."""
    prompt_ms: float
    """From the start of the prefill to the first token."""
    ttft_ms: float
    """From the arrival to the first token."""
    predicted_n: int
    """Tokens of the answer."""
    predicted_ms: float | None = None
    """From the first token to the last. Unknown for an answer that was complete when the front died."""
    prompt_per_second: float | None = None
    """Tokens that were computed."""
    predicted_per_second: float | None = None
    """After the first token."""


def timings(live: LiveRequest | LiveGroup) -> Timings:
    """Of an answer that is complete."""
    prompts = [answer for answer in live.answers if answer.rid == answer.live.rid]
    prompt, cached = sum(a.prompt_tokens for a in prompts), sum(a.cached_tokens for a in prompts)
    produced = sum(len(answer.ids) for answer in live.answers)
    first, last = live.first, max(answer.last for answer in live.answers)
    scheduled = live.scheduled or first
    return Timings(
        queue_ms=_ms(scheduled - live.started),
        prompt_n=prompt,
        cache_n=cached,
        prompt_ms=_ms(first - scheduled),
        ttft_ms=_ms(first - live.started),
        predicted_n=produced,
        predicted_ms=_ms(last - first) if last >= first else None,
        prompt_per_second=_rate(prompt - cached, first - scheduled),
        predicted_per_second=_rate(produced - len(live.answers), last - first),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 2) if tokens > 0 and seconds > 0 else None
