"""Response bodies and stream events in LightLLM's format, as encoded JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lightllm_mp.actors.front.live_request import Alternative, Answer, Event
from lightllm_mp.errors import ConfigError, EngineError, ModelError, NoTokenizer, StartupError
from lightllm_mp.messages import PromptLogprobs

encode = msgspec.json.Encoder().encode

INTERNAL = "internal error"
OPERATORS = frozenset(error.code for error in (ConfigError, ModelError, NoTokenizer, StartupError))

Ranked = dict[str, dict[str, Any]]
"""id -> {logprob, rank, decoded_token}; rank is null if unknown."""


class Token(Struct, frozen=True, gc=False):
    """A token of a stream."""

    id: int
    text: str
    logprob: float
    special: bool
    count_output_tokens: int
    prompt_tokens: int
    logprobs: Ranked | UnsetType = UNSET


class StreamEvent(Struct, frozen=True, gc=False):
    token: Token
    finished: bool
    finish_reason: str | None
    generated_text: None = None
    details: None = None


class TokenDetail(Struct, frozen=True, gc=False):
    """A token of a whole answer."""

    id: int
    logprob: float
    special: bool
    count_output_tokens: int
    prompt_tokens: int
    text: str


class WholeAnswer(Struct, frozen=True):
    """The answer of /generate. Fields are lists of n if n > 1; `generated_text` is always a list."""

    generated_text: list[str]
    count_output_tokens: int | list[int]
    finish_reason: str | list[str]
    prompt_tokens: int
    tokens: Any = UNSET
    logprobs: Any = UNSET
    cached_tokens: int | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Ranked | None] | UnsetType = UNSET


class ScoreAnswer(Struct, frozen=True):
    """The answer of /get_score."""

    score: float
    prompt_tokens: int
    finish_reason: str


class ErrorBody(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Struct, frozen=True):
    error: ErrorBody


def event(e: Event) -> bytes:
    """One server-sent event, without a space after `data:`, as LightLLM writes it."""
    token = Token(e.id, e.text, e.logprob, e.special, e.count, e.prompt_tokens, _ranked(e) if e.top else UNSET)
    return b"data:%b\n\n" % encode(StreamEvent(token, e.finish is not None, e.finish))


def failure_event(error: EngineError) -> bytes:
    return b"data:%b\n\n" % failure(error)


def failure(error: EngineError) -> bytes:
    """The error's JSON. Operator errors name files, so the client gets only INTERNAL."""
    message, param = (INTERNAL, None) if error.code in OPERATORS else (error.message, error.param)
    return encode(ErrorReply(ErrorBody(message, error.type, param, error.code)))


def whole(answers: Sequence[Answer], *, details: bool, logprobs: bool, prompt: PromptLogprobs | None) -> bytes:
    """The JSON of /generate. `details` adds tokens and the number of cached prompt tokens, `logprobs` the alternatives,
    `prompt` the prompt's ids and logprobs."""
    first = answers[0]

    def shape(values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else values

    return encode(
        WholeAnswer(
            generated_text=[answer.text for answer in answers],
            count_output_tokens=shape([len(answer.ids) for answer in answers]),
            finish_reason=shape([answer.finish for answer in answers]),
            prompt_tokens=first.prompt_tokens,
            tokens=shape([_details(answer) for answer in answers]) if details else UNSET,
            logprobs=shape([_logprobs(answer) for answer in answers]) if logprobs else UNSET,
            cached_tokens=first.cached_tokens if details else UNSET,
            prompt_token_ids=memoryview(prompt.ids).cast("i").tolist() if prompt is not None else UNSET,
            prompt_logprobs=_prompt_logprobs(prompt) if prompt is not None else UNSET,
        )
    )


def score(answer: Answer) -> bytes:
    assert answer.score is not None
    return encode(ScoreAnswer(answer.score, answer.prompt_tokens, answer.finish or "stop"))


def _details(answer: Answer) -> list[TokenDetail]:
    columns = zip(answer.ids, answer.logprobs, answer.special, answer.texts, strict=False)
    return [
        TokenDetail(id, logprob, bool(special), count, answer.prompt_tokens, text)
        for count, (id, logprob, special, text) in enumerate(columns, 1)
    ]


def _logprobs(answer: Answer) -> list[Ranked]:
    columns = zip(answer.ids, answer.logprobs, answer.tops, answer.texts, strict=False)
    return [_rank(id, logprob, text, top) for id, logprob, top, text in columns]


def _ranked(e: Event) -> Ranked:
    return _rank(e.id, e.logprob, e.text, e.top)


def _rank(id: int, logprob: float, text: str | None, top: Sequence[Alternative]) -> Ranked:
    """The chosen token first, then the alternatives from the best down."""
    ranked: Ranked = {str(id): {"logprob": logprob, "rank": None, "decoded_token": text}}
    for rank, other in enumerate(top, 1):
        key = str(other.id)
        if key in ranked:
            ranked[key]["rank"] = rank
        else:
            ranked[key] = {"logprob": other.logprob, "rank": rank, "decoded_token": other.text}
    return ranked


def _prompt_logprobs(m: PromptLogprobs) -> list[Ranked | None]:
    """One entry per prompt token; the first has none."""
    ids, logprobs = memoryview(m.ids).cast("i"), memoryview(m.logprobs).cast("f")
    top_ids, top_logprobs = memoryview(m.top_ids).cast("i"), memoryview(m.top_logprobs).cast("f")
    entries: list[Ranked | None] = [None]
    for i, (id, logprob) in enumerate(zip(ids[1:], logprobs, strict=True)):
        row = slice(i * m.top_n, (i + 1) * m.top_n)
        top = [Alternative(t, p, "") for t, p in zip(top_ids[row], top_logprobs[row], strict=True)]
        entry = _rank(id, logprob, None, top)
        for value in entry.values():
            value["decoded_token"] = None
        entries.append(entry)
    return entries
