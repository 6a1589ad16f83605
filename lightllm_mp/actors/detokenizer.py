"""The detokenizer actor turns ids into text, one event per token. It holds back text that cannot be shown yet."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.actor_settings import DetokenizerSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.errors import NoTokenizer
from lightllm_mp.messages import (
    RUNNING,
    STOP,
    Begin,
    Close,
    Open,
    PromptLogprobs,
    StopMatched,
    Texts,
    Tokens,
    Wire,
)
from lightllm_mp.text.detokenizer import IncrementalText
from lightllm_mp.text.prompt_texts import PromptTexts
from lightllm_mp.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(slots=True)
class _Sequence:
    opened: Open
    text: IncrementalText | None
    count: int
    """Tokens produced so far."""
    prompt: PromptTexts | None = None


@dataclass(slots=True)
class _Columns:
    """The columns of a Texts message, entry by entry."""

    rids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    special: list[int] = field(default_factory=list)
    finish: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    top: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    top_texts: list[tuple[str, ...]] = field(default_factory=list)

    def message(self, begun: float) -> Texts:
        return Texts(
            rids=np.array(self.rids, "<i8").tobytes(),
            ids=np.array(self.ids, "<i4").tobytes(),
            logprobs=np.array(self.logprobs, "<f4").tobytes(),
            counts=np.array(self.counts, "<i4").tobytes(),
            prompt_tokens=np.array(self.prompt_tokens, "<i4").tobytes(),
            cached_tokens=np.array(self.cached_tokens, "<i4").tobytes(),
            special=bytes(self.special),
            finish=bytes(self.finish),
            texts=tuple(self.texts),
            top=tuple(self.top),
            top_texts=tuple(self.top_texts),
            begun=begun,
        )


class DetokenizerActor(BlockingActor):
    budget = 1  # a resumed sequence of many tokens takes a second

    def __init__(self, launch: LaunchSpec[DetokenizerSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._front = launch.front
        self._eos: frozenset[int] = frozenset()
        self._open: dict[int, _Sequence] = {}
        self._traced = launch.settings.traced
        self._skips = launch.settings.skip_special_tokens
        self._tokenizer: Tokenizer | None = None
        """None: ids are served without text."""
        with suppress(NoTokenizer):
            self._tokenizer = load_tokenizer(Path(launch.model.path), mode=launch.settings.tokenizer_mode)

    def on_begin(self, begin: Begin) -> None:
        self._eos = frozenset(begin.facts.eos_ids)

    def on_reset(self) -> None:
        self._open.clear()

    def on_message(self, peer: str, message: Wire) -> None:
        match message:
            case Tokens():
                self._tokens(message)
            case Open(rid=rid):
                self._open[rid] = self._opened(message)
            case PromptLogprobs(rid=rid):
                self._prompt(self._open.get(rid), message)
            case Close(rid):
                self._open.pop(rid, None)

    def _opened(self, opened: Open) -> _Sequence:
        emitted = np.frombuffer(opened.emitted, "<i4").tolist()
        text = None
        if self._tokenizer is not None:
            output = opened.output
            text = IncrementalText(
                self._tokenizer,
                prompt_tail=np.frombuffer(opened.prompt_tail, "<i4").tolist(),
                skip_special_tokens=self._skips if output.skip_special_tokens is None else output.skip_special_tokens,
                spaces_between_special_tokens=output.spaces_between_special_tokens,
                stop=output.stop,
                keep_stop=output.keep_stop,
            )
            text.replay(emitted)
        return _Sequence(opened, text, len(emitted))

    def _prompt(self, sequence: _Sequence | None, message: PromptLogprobs) -> None:
        if sequence is None or self._tokenizer is None or not sequence.opened.output.prompt_texts:
            self.mailbox.post(self._front, message)
            return
        sequence.prompt = sequence.prompt or PromptTexts(self._tokenizer)
        for piece in sequence.prompt.of(message):
            self.mailbox.post(self._front, piece)

    def _tokens(self, message: Tokens) -> None:
        begun = monotonic() if self._traced else 0.0
        rids = np.frombuffer(message.rids, "<i8").tolist()
        ids = np.frombuffer(message.ids, "<i4").tolist()
        logprobs = np.frombuffer(message.logprobs, "<f4").tolist()
        top = {index: (top_ids, top_logprobs) for index, top_ids, top_logprobs in message.top}
        columns = _Columns()
        for index, rid in enumerate(rids):
            sequence = self._open.get(rid)
            if sequence is None:
                continue
            text, finish = self._next_text(sequence, rid, ids[index], message.finish[index])
            if index in top:
                columns.top.append((len(columns.rids), *top[index]))
                columns.top_texts.append(self._top_texts(top[index][0]))
            columns.rids.append(rid)
            columns.ids.append(ids[index])
            columns.logprobs.append(logprobs[index])
            columns.counts.append(sequence.count)
            columns.prompt_tokens.append(sequence.opened.prompt_tokens)
            columns.cached_tokens.append(sequence.opened.cached_tokens)
            columns.special.append(self._tokenizer is not None and self._tokenizer.is_special(ids[index]))
            columns.finish.append(finish)
            columns.texts.append(text)
        if columns.rids:
            self.mailbox.post(self._front, columns.message(begun))

    def _next_text(self, sequence: _Sequence, rid: int, token: int, finish: int) -> tuple[str, int]:
        """Text of this token's event, and the finish reason (RUNNING if the sequence goes on)."""
        sequence.count += 1
        if sequence.text is None or self._tokenizer is None:
            text = ""
        else:
            text = self._text_of(sequence.text, sequence.opened, token, finish)
            if sequence.text.stopped and finish == RUNNING:
                self.mailbox.post(ROUTER, StopMatched(rid))
            if sequence.text.stopped:
                finish = STOP
        if finish != RUNNING:
            del self._open[rid]
        return text, finish

    def _text_of(self, state: IncrementalText, opened: Open, token: int, finish: int) -> str:
        assert self._tokenizer is not None
        ends = finish == STOP and token in self._eos
        text = "" if ends and not state.stops_at(token) else state.push(token)
        if finish != RUNNING:
            text += state.finish()
        kept = state.stops_at(token) and opened.output.keep_stop
        if ends and opened.output.print_eos_token and not kept:
            text += self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def _top_texts(self, ids: bytes) -> tuple[str, ...]:
        if self._tokenizer is None:
            return ()
        decode = self._tokenizer.decode
        return tuple(decode([token], skip_special_tokens=False) for token in np.frombuffer(ids, "<i4").tolist())
