"""The record of every live request: what was asked, what has been passed on, who waits for it.

A front is the HTTP actor or the embedded engine; both keep one `Frontend`. It is single-threaded asyncio code and never
blocks: lanes that are full refuse a new request and hold back everything else until `flush`. When the engine is
repaired (`reset`, then `begin`) every unfinished sequence is submitted again with the ids it has already passed on, and
its consumer sees nothing but a pause.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.actors import intake
from lightllm_mp.actors.drain_rate import DrainRate
from lightllm_mp.actors.intake import Prompt
from lightllm_mp.actors.live import Answer, Event, Live, alternatives
from lightllm_mp.actors.outgoing import Lane, Send
from lightllm_mp.actors.uploads import ImageLane, Upload
from lightllm_mp.errors import EngineError, InvalidRequest, Overloaded, PromptTooLong, Unavailable
from lightllm_mp.messages import Facts, Output, Sampling, Wire

RETRY_LEAST, RETRY_MOST = 1.0, 60.0
MAX_FRUITLESS = 3
"""A request that got no token over so many repairs is answered with an error: it may be what breaks the engine."""


class SlowReader(EngineError):
    """A streaming consumer fell too far behind."""

    status = 408
    type = "timeout_error"
    code = "slow_reader"


class Observer(Protocol):
    """Who counts. Called from the hot path: cheap, never raises."""

    def accepted(self, live: Live) -> None: ...
    def refused(self, reason: str) -> None: ...
    def first_token(self, live: Live, seconds: float) -> None: ...
    def tokens(self, count: int, gaps: list[float]) -> None: ...
    def ended(self, live: Live) -> None: ...


class Frontend:
    """All live requests of one front.

    `to_tokenizer` and `to_router` put a message on a lane and return False when it is full. `images`: the way to the
    visual actor, where there is one.
    """

    def __init__(self, to_tokenizer: Send, to_router: Send, *, max_live: int, images: ImageLane | None = None) -> None:
        self._lanes = (Lane(to_tokenizer), Lane(to_router))
        self.images = images
        self._max_live = max_live
        self._next_rid = (secrets.randbits(31) << 31) + 1
        self._lives: dict[int, Live] = {}
        self._answers: dict[int, Answer] = {}
        self._counts: dict[int, tuple[say.Count, asyncio.Future[int]]] = {}
        self._drain_rate = DrainRate(monotonic())
        self._connected = False
        self._drained = False
        self.facts: Facts | None = None
        self.state = say.Health(ok=True)
        self.observer: Observer | None = None
        self.on_drained: Callable[[], None] | None = None
        """Called once, when draining and no live request is left."""

    # --- the supervisor's side ---

    def begin(self, message: say.Begin) -> None:
        """Fresh lanes are there: submit everything that is unfinished again."""
        self.facts = message.facts
        self.reset()
        self._connected = True
        for live in list(self._lives.values()):
            self._resume(live, after_a_death=bool(message.restarted))
        for request, _ in self._counts.values():
            self._lanes[0].push(request)

    def reset(self) -> None:
        """The lanes are gone. Keep every record and send nothing until `begin`."""
        self._connected = False
        for lane in self._all_lanes():
            lane.clear()

    def health(self, message: say.Health) -> None:
        self.state = message
        self._check_drained()

    def flush(self) -> None:
        """There may be room in the lanes again: send what was held back."""
        for lane in self._all_lanes():
            lane.flush()

    @property
    def live(self) -> int:
        """Requests accepted and not yet given back by their consumer, token counts included."""
        return len(self._lives) + len(self._counts)

    @property
    def ready(self) -> bool:
        """New work is served at once."""
        return self._connected and self.state.ok and not self.state.draining

    @property
    def trouble(self) -> str:
        """Why there is no progress; empty when all is well."""
        if self.facts is None:
            return "starting"
        if not self.state.ok:
            return self.state.reason or "unhealthy"
        return "" if self._connected else "repairing"

    def drained(self) -> bool:
        return self.state.draining and not self.live

    # --- the consumer's side ---

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        output: Output,
        *,
        n: int = 1,
        priority: int = 0,
        reuse_prompt: bool = True,
        add_special_tokens: bool = True,
        images: Sequence[Upload] = (),
        stream: bool = True,
    ) -> Live:
        """Start a request. Raises InvalidRequest, PromptTooLong, Overloaded or Unavailable; never blocks."""
        self._admit()
        assert self.facts is not None
        intake.check(prompt, sampling, n, self.facts, sees=self.images is not None)
        intake.check_images(images, self.images, self.facts)
        request = say.Generate(
            rid=self._rids(n),
            n=n,
            sampling=sampling,
            output=output,
            text=prompt if isinstance(prompt, str) else None,
            ids=prompt if isinstance(prompt, bytes) else None,
            chat=prompt if isinstance(prompt, tuple) else None,
            add_special_tokens=add_special_tokens,
            priority=priority,
            reuse_prompt=reuse_prompt,
            images=tuple(upload.picture for upload in images),
        )
        held = self.images.files.hold(images) if self.images is not None and images else ()
        try:
            self._send_new(request)
        except Overloaded:
            self._let_go(held)
            raise
        live = Live(request, self.forget, stream=stream, images=held)
        self._send_images(live, live.rid)
        self._lives[live.rid] = live
        self._answers.update((answer.rid, answer) for answer in live.answers)
        if self.observer is not None:
            self.observer.accepted(live)
        return live

    async def count(self, text: str, *, add_special_tokens: bool = True, images: Sequence[say.Picture] = ()) -> int:
        """How many tokens `text` has, with these images in its places for them. Raises like `submit`."""
        self._admit()
        assert self.facts is not None
        intake.check_prompt(text, self.facts)
        request = say.Count(self._rids(1), text, add_special_tokens, tuple(images))
        self._send_new(request)
        future = asyncio.get_running_loop().create_future()
        self._counts[request.rid] = (request, future)
        try:
            return await future
        finally:
            del self._counts[request.rid]
            self._check_drained()

    def forget(self, live: Live) -> None:
        """The consumer is done with `live`; called by Live.close()."""
        self._abort(live)
        if self._lives.pop(live.rid, None) is not None:
            self._let_go(live.images)
            if self.observer is not None:
                self.observer.ended(live)
        self._check_drained()

    def retry_after(self) -> float:
        """Seconds until what is live now is done, at the measured drain rate."""
        rate = self._drain_rate.value(monotonic())
        seconds = self.live / rate if rate > 0 else RETRY_MOST
        return min(max(seconds, RETRY_LEAST), RETRY_MOST)

    # --- the engine's side ---

    def deliver(self, message: Wire) -> None:
        """A message from the tokenizer, the router or the detokenizer. Unknown rids are dropped."""
        if isinstance(message, say.Texts):
            self._texts(message)
        elif isinstance(message, say.Rejected):
            self._rejected(message)
        elif isinstance(message, say.ImageFailed) and message.rid in self._answers:
            live = self._answers[message.rid].live
            self._abort(live)
            live.fail(rebuild(message.error))
            self._drain_rate.finished(monotonic())
        elif isinstance(message, say.Counted):
            _, future = self._counts.get(message.rid, (None, None))
            if future is not None and not future.done():
                future.set_result(message.tokens)
        elif isinstance(message, say.Scheduled):
            answer = self._answers.get(message.rid)
            if answer is not None and not answer.live.scheduled:
                answer.live.scheduled = monotonic()
        elif isinstance(message, say.PromptLogprobs) and message.rid in self._answers:
            self._answers[message.rid].live.prompt_logprobs = message
        elif isinstance(message, say.Scored) and message.rid in self._answers:
            self._scored(self._answers.pop(message.rid), message)

    def _texts(self, m: say.Texts) -> None:
        now = monotonic()
        tokens, gaps = 0, list[float]()
        tops = alternatives(m) if m.top else {}
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
            answer = self._answers.get(rid)
            if answer is None:
                continue
            if count <= len(answer.ids):
                if not finish:
                    continue  # passed on before the repair
                token = -1
            reason = say.FINISH_REASONS[finish]
            event = Event(
                answer.index, token, text, logprob, count, prompt, cached, bool(special), reason, tops.get(i, ())
            )
            tokens += token >= 0
            self._pass_on(answer, event, now, gaps)
        if self.observer is not None:
            self.observer.tokens(tokens, gaps)

    def _pass_on(self, answer: Answer, event: Event, now: float, gaps: list[float]) -> None:
        live = answer.live
        if event.id >= 0:
            answer.ids.append(event.id)
            live.fruitless = 0
        answer.prompt_tokens, answer.cached_tokens = event.prompt_tokens, event.cached_tokens
        if answer.last:
            gaps.append(now - answer.last)
        elif not live.first:
            live.first = now
            if self.observer is not None:
                self.observer.first_token(live, now - live.started)
        answer.last = now
        if event.finish is not None:
            answer.finish = event.finish
            del self._answers[answer.rid]
            live.open -= 1
            if not live.open:
                self._drain_rate.finished(now)
        if not live.put(answer, event):
            self._overflow(live)

    def _overflow(self, live: Live) -> None:
        live.fail(SlowReader("the client reads too slowly"), drop=True)
        self._abort(live)
        if live.on_overflow is not None:
            live.on_overflow()

    def _scored(self, answer: Answer, message: say.Scored) -> None:
        live, now = answer.live, monotonic()
        answer.score, answer.finish = message.score, "stop"
        answer.prompt_tokens, answer.cached_tokens = message.prompt_tokens, message.cached_tokens
        live.first = answer.last = now
        if self.observer is not None:
            self.observer.first_token(live, now - live.started)
        live.open -= 1
        self._drain_rate.finished(now)
        live.wake()

    def _rejected(self, message: say.Rejected) -> None:
        if message.rid in self._counts:
            future = self._counts[message.rid][1]
            if not future.done():
                future.set_exception(rebuild(message.error))
        elif (answer := self._answers.pop(message.rid, None)) is not None:
            live = answer.live
            if live.images and self.images is not None:
                self.images.abort(answer.rid)
            self._abort(live)  # the followers: rejected with it, or running if they were resumed one by one
            live.fail(rebuild(message.error))
            self._drain_rate.finished(monotonic())

    # --- inside ---

    def _admit(self) -> None:
        if self.facts is None:
            self._refuse("starting")
            raise Unavailable("the server is starting")
        if self.state.draining:
            self._refuse("draining")
            raise Unavailable("the server is shutting down")
        if self.live >= self._max_live:
            self._refuse("max_live_requests")
            raise Overloaded(f"{self._max_live} requests are live already", retry_after=self.retry_after())

    def _send_new(self, request: Wire) -> None:
        if self._connected and not self._lanes[0].offer(request):
            self._refuse("lane_full")
            raise Overloaded("the request queue is full", retry_after=self.retry_after())

    def _resume(self, live: Live, *, after_a_death: bool) -> None:
        """Submit what is unfinished again, unless the request looks like the reason for the repairs."""
        live.fruitless += after_a_death
        if live.fruitless > MAX_FRUITLESS:
            self._abort(live)
            live.fail(EngineError("the engine failed on this request repeatedly"))
            return
        for answer in live.answers:
            if answer.rid in self._answers:
                self._lanes[0].push(_again(live, answer))
                self._send_images(live, answer.rid)

    def _refuse(self, reason: str) -> None:
        if self.observer is not None:
            self.observer.refused(reason)

    def _rids(self, n: int) -> int:
        first = self._next_rid
        self._next_rid += n
        return first

    def _abort(self, live: Live) -> None:
        """Tell the engine that nobody waits for the unfinished answers of `live`."""
        for answer in live.answers:
            if self._answers.pop(answer.rid, None) is not None and self._connected:
                for lane in self._lanes:
                    lane.push(say.Abort(answer.rid))
                if live.images and self.images is not None:
                    self.images.abort(answer.rid)

    def _send_images(self, live: Live, rid: int) -> None:
        if live.images and self.images is not None and self._connected:
            self.images.push(rid, live.images)

    def _let_go(self, uploads: Sequence[Upload]) -> None:
        if uploads and self.images is not None:
            self.images.let_go(uploads)

    def _all_lanes(self) -> tuple[Lane | ImageLane, ...]:
        return self._lanes if self.images is None else (*self._lanes, self.images)

    def _check_drained(self) -> None:
        if self.drained() and not self._drained:
            self._drained = True
            if self.on_drained is not None:
                self.on_drained()


def rebuild(info: say.ErrorInfo) -> EngineError:
    """The error that `info` was made from, as near as this process knows it."""
    kind = next((k for k in (PromptTooLong, InvalidRequest, Unavailable) if k.code == info.code), EngineError)
    error = kind(info.message, param=info.param)
    error.status, error.type, error.code = info.status, info.type, info.code
    return error


def _again(live: Live, answer: Answer) -> say.Generate:
    """The request of one unfinished answer, to go on from what has been passed on. Seed `index` further, as n does."""
    sampling = replace(live.request.sampling, seed=live.request.sampling.seed + answer.index)
    if live.prompt_logprobs is not None:
        sampling = replace(sampling, prompt_logprobs=-1)
    return replace(live.request, rid=answer.rid, n=1, sampling=sampling, emitted=answer.ids.tobytes())
