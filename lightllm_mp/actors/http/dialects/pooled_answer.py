"""Answers of /v1/embeddings (OpenAI), /v1/rerank (Jina, Cohere) and /v1/score (vLLM)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence

from lightllm_mp.actors.front.embeddings import shortened, shown_score
from lightllm_mp.actors.front.live_request import Answer, LiveRequest
from lightllm_mp.actors.http.dialects.writer import AnswerForm, AnswerWriter
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.actors.http.responses import encode


class PooledForm(AnswerForm, frozen=True):
    """Of an answer with one row of numbers for each prompt. `created`: Unix time in seconds."""

    model: str = ""
    created: int = 0

    @property
    def streamed(self) -> bool:
        return False


class EmbeddingForm(PooledForm, frozen=True, tag="embedding"):
    base64: bool = False
    length: int | None = None
    """Numbers that are shown of each; None: all."""

    def writer(self, live: LiveRequest | LiveGroup) -> EmbeddingWriter:
        return EmbeddingWriter(self)


class EmbeddingWriter(AnswerWriter):
    def __init__(self, form: EmbeddingForm) -> None:
        self._form = form

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield b'{"object":"list","data":['
        for index, answer in enumerate(answers):
            row = shortened(answer.pooled, self._form.length)
            shown = b'"%b"' % b64encode(row.tobytes()) if self._form.base64 else encode(row.tolist())
            yield b'%b{"object":"embedding","index":%d,"embedding":%b}' % (b"," * (index > 0), index, shown)
        yield b'],"model":%b,"usage":%b}' % (encode(self._form.model), encode(_usage(answers)))


class RerankForm(PooledForm, frozen=True, tag="rerank"):
    top_n: int = 0
    """Documents that are shown; 0: all."""
    documents: tuple[str, ...] = ()
    """Shown beside the scores; empty: none."""
    raw: bool = False
    """A score is the number itself, and not its sigmoid."""

    def writer(self, live: LiveRequest | LiveGroup) -> RerankWriter:
        return RerankWriter(self, live.label)


class RerankWriter(AnswerWriter):
    def __init__(self, form: RerankForm, label: str) -> None:
        self._form, self._label = form, label

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        form = self._form
        scores = [shown_score(answer.score, raw=form.raw) for answer in answers]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: form.top_n or None]
        head = encode("rerank-" + self._label), encode(form.model), encode(_usage(answers))
        yield b'{"id":%b,"model":%b,"usage":%b,"results":[' % head
        for place, index in enumerate(best):
            text = b'"document":{"text":%b},' % encode(form.documents[index]) if form.documents else b""
            parts = b"," * (place > 0), index, text, encode(scores[index])
            yield b'%b{"index":%d,%b"relevance_score":%b}' % parts
        yield b"]}"


class ScoreForm(PooledForm, frozen=True, tag="score_pairs"):
    raw: bool = False
    """As `RerankForm.raw`."""

    def writer(self, live: LiveRequest | LiveGroup) -> ScoreWriter:
        return ScoreWriter(self, live.label)


class ScoreWriter(AnswerWriter):
    def __init__(self, form: ScoreForm, label: str) -> None:
        self._form, self._label = form, label

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        form = self._form
        head = encode("score-" + self._label), form.created, encode(form.model)
        yield b'{"id":%b,"object":"list","created":%d,"model":%b,"data":[' % head
        for index, answer in enumerate(answers):
            score = encode(shown_score(answer.score, raw=form.raw))
            yield b'%b{"index":%d,"object":"score","score":%b}' % (b"," * (index > 0), index, score)
        yield b'],"usage":%b}' % encode(_usage(answers))


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    tokens = sum(answer.prompt_tokens for answer in answers)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
