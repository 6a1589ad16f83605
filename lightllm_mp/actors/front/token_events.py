"""Reads the columns of a Texts message as the events of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, repeat

from lightllm_mp.actors.front.live_request import Alternative, Answer, Event
from lightllm_mp.messages import FINISH_REASONS, Texts


def token_events(m: Texts, answers: Mapping[int, Answer]) -> Iterator[tuple[Answer, Event]]:
    """The new events of known `answers` (by rid). Tokens that an answer has from before a repair are left out."""
    tops = _alternatives(m) if m.top else {}
    columns = zip(
        memoryview(m.rids).cast("q").tolist(),
        memoryview(m.ids).cast("i").tolist(),
        m.texts,
        memoryview(m.logprobs).cast("f").tolist(),
        memoryview(m.counts).cast("i").tolist(),
        memoryview(m.prompt_tokens).cast("i").tolist(),
        memoryview(m.cached_tokens).cast("i").tolist(),
        m.special,
        m.finish,
        strict=True,
    )
    for i, (rid, token, text, logprob, count, prompt, cached, special, finish) in enumerate(columns):
        answer = answers.get(rid)
        if answer is None:
            continue
        if count <= len(answer.ids):
            if not finish:
                continue
            token = -1
        reason = FINISH_REASONS[finish]
        event = Event(answer.index, token, text, logprob, count, prompt, cached, bool(special), reason, tops.get(i, ()))
        yield answer, event


def _alternatives(m: Texts) -> dict[int, tuple[Alternative, ...]]:
    """Index into the columns -> alternatives; their texts are empty without a tokenizer."""
    return {
        i: tuple(map(Alternative, memoryview(ids).cast("i"), memoryview(logprobs).cast("f"), chain(texts, repeat(""))))
        for (i, ids, logprobs), texts in zip(m.top, m.top_texts, strict=True)
    }
