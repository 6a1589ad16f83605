"""Response bodies and stream events in LightLLM's format, as encoded JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lightllm_mp.actors.front.embeddings import shown_score
from lightllm_mp.actors.front.live_request import SLICE, Alternative, Answer, Event
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


class AnswerFacts(Struct, frozen=True):
    """The small fields of the answer of /generate, lists of n if n > 1. The others are `generated_text`, a list of n
    texts; and on demand `tokens`, `logprobs`, `prompt_token_ids` and `prompt_logprobs`."""

    count_output_tokens: int | list[int]
    finish_reason: str | list[str]
    prompt_tokens: int
    cached_tokens: int | UnsetType = UNSET


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


def event(e: Event, number: int) -> bytes:
    """One server-sent event, without a space after `data:`, as LightLLM writes it. `number`: its id, counted from 1;
    0: none, for clients that split at blank lines and expect `data:` next."""
    token = Token(e.id, e.text, e.logprob, e.special, e.count, e.prompt_tokens, _ranked(e) if e.top else UNSET)
    data = b"data:%b\n\n" % encode(StreamEvent(token, e.finish is not None, e.finish))
    return b"id:%d\n%b" % (number, data) if number else data


def failure_event(error: EngineError) -> bytes:
    return b"data:%b\n\n" % failure(error)


def failure(error: EngineError) -> bytes:
    """The error's JSON. Operator errors name files, so the client gets only INTERNAL."""
    message, param = (INTERNAL, None) if error.code in OPERATORS else (error.message, error.param)
    return encode(ErrorReply(ErrorBody(message, error.type, param, error.code)))


def whole(
    answers: Sequence[Answer], *, details: bool, logprobs: bool, prompt: Sequence[PromptLogprobs]
) -> Iterator[bytes]:
    """The JSON of /generate in pieces of at most SLICE tokens. `details` adds tokens and the number of cached prompt
    tokens, `logprobs` the alternatives, `prompt` the prompt's ids and logprobs."""
    first = answers[0]

    def shape(values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else values

    facts = AnswerFacts(
        count_output_tokens=shape([len(answer.ids) for answer in answers]),
        finish_reason=shape([answer.finish for answer in answers]),
        prompt_tokens=first.prompt_tokens,
        cached_tokens=first.cached_tokens if details else UNSET,
    )
    yield b'{"generated_text":['
    for answer in answers:
        yield b',"' if answer.index else b'"'
        for events in answer.slices():
            yield encode("".join(event.text for event in events))[1:-1]
        yield b'"'
    yield b"]," + encode(facts)[1:-1]
    if details:
        yield from _column(b"tokens", answers, _detail)
    if logprobs:
        yield from _column(b"logprobs", answers, _ranked)
    yield from prompt_logprobs(prompt)
    yield b"}"


def prompt_logprobs(prompt: Sequence[PromptLogprobs]) -> Iterator[bytes]:
    """The fields of an object that show a prompt's ids and logprobs; nothing if there are none."""
    if prompt:
        yield b',"prompt_token_ids":'
        yield from json_array(memoryview(piece.ids).cast("i").tolist() for piece in prompt)
        yield b',"prompt_logprobs":'
        yield from json_array(entries for piece in prompt for entries in _prompt_logprobs(piece))


def score(answer: Answer, *, raw: bool) -> bytes:
    return encode(ScoreAnswer(shown_score(answer.score, raw=raw), answer.prompt_tokens, answer.finish or "stop"))


def _column(name: bytes, answers: Sequence[Answer], entry: Callable[[Event], Any]) -> Iterator[bytes]:
    """A field with an entry per token: an array, or an array of n arrays."""
    yield b',"%b":' % name
    yield b"[" if len(answers) > 1 else b""
    for answer in answers:
        yield b"," if answer.index else b""
        yield from json_array([entry(e) for e in events if e.id >= 0] for events in answer.slices())
    yield b"]" if len(answers) > 1 else b""


def json_array(slices: Iterable[list[Any]]) -> Iterator[bytes]:
    """One JSON array of all slices."""
    comma = b"["
    for values in filter(None, slices):
        yield comma + encode(values)[1:-1]
        comma = b","
    yield b"]" if comma == b"," else b"[]"


def _detail(e: Event) -> TokenDetail:
    return TokenDetail(e.id, e.logprob, e.special, e.count, e.prompt_tokens, e.text)


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


def _prompt_logprobs(m: PromptLogprobs) -> Iterator[list[Ranked | None]]:
    """One entry per token of the piece, in slices; the prompt's first token has none."""
    ids, logprobs = memoryview(m.ids).cast("i"), memoryview(m.logprobs).cast("f")
    top_ids, top_logprobs = memoryview(m.top_ids).cast("i"), memoryview(m.top_logprobs).cast("f")

    def entry(i: int) -> Ranked:
        row = slice(i * m.top_n, (i + 1) * m.top_n)
        top = [Alternative(t, p, "") for t, p in zip(top_ids[row], top_logprobs[row], strict=True)]
        found = _rank(ids[i + first], logprobs[i], None, top)
        for value in found.values():
            value["decoded_token"] = None
        return found

    first = len(ids) - len(logprobs)
    yield [None] * first
    for start in range(0, len(logprobs), SLICE):
        yield [entry(i) for i in range(start, min(start + SLICE, len(logprobs)))]
