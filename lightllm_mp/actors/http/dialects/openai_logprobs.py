"""Log-probabilities in OpenAI's forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightllm_mp.actors.front.live_request import Event


def chat_logprobs(events: Iterable[Event]) -> list[dict[str, Any]]:
    """One entry per token: its text, logprob, bytes and alternatives."""
    return [
        _entry(token_text(event), event.logprob)
        | {"top_logprobs": [_entry(other.text, other.logprob) for other in event.top]}
        for event in events
        if event.id >= 0
    ]


def token_text(event: Event) -> str:
    """The token's own text where its alternatives tell it; else what it added to the answer, which may be less or more
    where characters are split between tokens."""
    return next((other.text for other in event.top if other.id == event.id), event.text)


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
