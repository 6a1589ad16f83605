"""Answers of /v1/completions: chunks of a stream, or one object. A request with several prompts has n choices each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.http.dialects.openai_choices import ChoicesForm, ChoicesWriter
from lightllm_mp.actors.http.dialects.openai_fields import Usage
from lightllm_mp.actors.http.dialects.openai_logprobs import CompletionLogprobs
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.actors.http.responses import encode, prompt_logprobs


class CompletionForm(ChoicesForm, frozen=True, tag="completion"):
    logprobs: int | None = None
    prompt_logprobs: bool = False
    echo: bool = False
    silent: bool = False
    """Only the echo is shown."""
    n: int = 1
    """Choices of each prompt; the most likely ones if there are more answers."""

    def writer(self, live: LiveRequest | LiveGroup) -> CompletionWriter:
        return CompletionWriter(self, live)


class CompletionWriter(ChoicesWriter[LiveRequest | LiveGroup]):
    def __init__(self, form: CompletionForm, live: LiveRequest | LiveGroup) -> None:
        super().__init__(form, live, "cmpl-" + live.label, b"text_completion", b"text")
        self._form = form
        shows_more = form.logprobs is not None or form.token_ids or form.continuous_usage or form.numbered
        self._plain = not (form.echo or form.silent or shows_more)
        self._logprobs = [CompletionLogprobs(form.logprobs or 0) for _ in live.answers]
        self._echoed = [not form.echo] * len(live.answers)

    def seen(self, events: Sequence[Event]) -> None:
        for event in events:
            self._choice(event)

    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        for i, event in enumerate(events, number):
            if self._plain and event.finish is None:
                yield self._chunk % (event.index, encode(event.text)) + self.RUNNING
            else:
                yield self._full(event, i)

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield self._head + b',"choices":['
        for index, answer in enumerate(self._shown(answers)):
            yield b'%b{"index":%d,"text":"' % (b"," * (index > 0), index)
            logprobs = CompletionLogprobs(self._form.logprobs or 0)
            if self._form.echo:
                yield encode(echoed(answer.live))[1:-1]
                if self._form.logprobs is not None:
                    for piece in answer.live.prompt_logprobs:
                        logprobs.prompt(piece)
                        yield b""
            for events in answer.slices() if not self._form.silent else ():
                yield encode("".join(event.text for event in events))[1:-1]
                if self._form.logprobs is not None:
                    logprobs.answer(events)
            yield b'","logprobs":'
            if self._form.logprobs is None:
                yield b"null"
            else:
                yield from logprobs.json()
            if self._form.token_ids:
                yield b',"token_ids":' + encode([] if self._form.silent else answer.ids.tolist())
            if self._form.prompt_logprobs and index % self._form.n == 0:
                yield from prompt_logprobs(answer.live.prompt_logprobs)
            yield b',"finish_reason":%b}' % encode(answer.finish)
        yield b"]" + self._last_fields() + b',"service_tier":"default","system_fingerprint":null}'

    def _shown(self, answers: Sequence[Answer]) -> Iterator[Answer]:
        """The n most likely answers of each prompt (by their mean logprob), in order."""
        each = len(answers[0].live.answers)
        for first in range(0, len(answers), each):
            made = answers[first : first + each]
            if each > self._form.n:
                best = sorted(made, key=_mean_logprob, reverse=True)[: self._form.n]
                made = sorted(best, key=lambda answer: answer.index)
            yield from made

    def _full(self, event: Event, number: int) -> bytes:
        text, logprobs, ids = self._choice(event)
        parts = [b"id: %d\n" % number if self._form.numbered else b"", self._chunk % (event.index, encode(text))]
        parts.append(b',"logprobs":%b' % (b"null" if logprobs is None else logprobs))
        if self._form.token_ids:
            parts.append(b',"token_ids":%b' % encode(ids))
        parts.append(b',"finish_reason":%b}]' % encode(event.finish))
        if self._form.continuous_usage:
            parts.append(b',"usage":' + encode(self._usage()))
        parts.append(b"}\n\n")
        return b"".join(parts)

    def _choice(self, event: Event) -> tuple[str, bytes | None, list[int]]:
        """The text, logprobs and ids that an event adds to its choice."""
        form, index = self._form, event.index
        logprobs, text = self._logprobs[index], ""
        if not self._echoed[index]:
            self._echoed[index] = True
            live = self._live.answers[index].live
            text = echoed(live)
            if form.logprobs is not None:
                for piece in live.prompt_logprobs:
                    logprobs.prompt(piece)
        if not form.silent:
            text += event.text
            if form.logprobs is not None:
                logprobs.answer([event])
        shown = None if form.logprobs is None else b"".join(logprobs.json())
        logprobs.clear()
        return text, shown, [event.id] if event.id >= 0 and not form.silent else []

    def _usage(self) -> Usage:
        prompt = cached = produced = 0
        for answer in self._live.answers:
            produced += 0 if self._form.silent else len(answer.ids)
            if answer.rid == answer.live.rid:  # the first of its prompt
                prompt, cached = prompt + answer.prompt_tokens, cached + answer.cached_tokens
        return Usage(prompt, produced, prompt + produced, {"cached_tokens": cached})


def echoed(live: LiveRequest) -> str:
    """The text of its prompt."""
    if live.request.text is not None:
        return live.request.text
    return "".join("".join(piece.texts) for piece in live.prompt_logprobs)


def _mean_logprob(answer: Answer) -> float:
    logprobs = array("d", (event.logprob for event in answer.events() if event.id >= 0))
    return sum(logprobs) / max(len(logprobs), 1)
