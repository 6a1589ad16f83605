"""The table of live requests: for each its prompt, the tokens emitted so far, and its consumer.

A front is the HTTP actor or the embedded engine; each has one `RequestTable`. It is single-threaded asyncio code and
never blocks: a full lane refuses a new request, and every other message waits for `flush`. When the engine is repaired
(`reset`, then `begin`), every unfinished sequence is submitted again with the ids it has emitted; its consumer only
sees a pause. A request whose consumer leaves is aborted in the engine, but may be retained for a while.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from time import monotonic

from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.actors.front import validation
from lightllm_mp.actors.front.deadlines import Deadlines
from lightllm_mp.actors.front.fair_shares import FULL
from lightllm_mp.actors.front.image_files import ImageLane, NoImageLane, Upload
from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest, Relay
from lightllm_mp.actors.front.quarantine import Quarantine
from lightllm_mp.actors.front.request_journal import NoJournal, RequestJournal
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.request_observer import NoObserver, Observer
from lightllm_mp.actors.front.retained_requests import RetainedRequests
from lightllm_mp.actors.front.send_queue import Send, SendQueue
from lightllm_mp.actors.front.token_events import token_events
from lightllm_mp.actors.front.tokenizer_calls import TokenizerCall, TokenizerCalls
from lightllm_mp.actors.front.validation import Prompt
from lightllm_mp.errors import EngineError, Overloaded, SlowReader, Unavailable
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Terms, Wire

RECORDED = 16
"""Events of a whole answer that a death of the front may cost."""


class RequestTable:
    """All live requests of one front.

    `to_tokenizer` and `to_router` put a message on a lane and return False when it is full. `images`: the lane to the
    visual actor, if there is one. A request not scheduled within `queue_seconds` fails; 0: it waits. `journal` outlives
    this process. A request is kept for `resume_window` seconds after its consumer has left; 0: not at all. The events
    of all requests take at most `answer_bytes`.
    """

    def __init__(
        self,
        to_tokenizer: Send,
        to_router: Send,
        *,
        limits: RequestLimits,
        queue_seconds: float = 0.0,
        images: ImageLane | NoImageLane | None = None,
        journal: RequestJournal | None = None,
        resume_window: float = 0.0,
        retained_bytes: int = 256 << 20,
        answer_bytes: int = 1 << 30,
    ) -> None:
        self._lanes = (SendQueue(to_tokenizer), SendQueue(to_router))
        self.images = images or NoImageLane()
        self.limits = limits
        self._deadlines = Deadlines(queue_seconds, self._give_up, limits.retry_after)
        self._next_rid = (secrets.randbits(31) << 31) + 1
        self._lives: dict[int, LiveRequest] = {}
        self._answers: dict[int, Answer] = {}
        self._calls = TokenizerCalls()
        self._quarantine = Quarantine(self._submit_again, lambda name, epoch: self.on_blame(name, epoch))
        self.journal: RequestJournal | NoJournal = journal or NoJournal()
        self.retained = RetainedRequests(resume_window, self.journal, self._dropped, retained_bytes)
        self._most_answer_bytes, self.answer_bytes = answer_bytes, 0
        self._connected = False
        self._drained = False
        self._staying = False
        self.facts: Facts | None = None
        self.state = say.Health(ok=True)
        self.observer: Observer = NoObserver()
        self.on_drained: Callable[[], None] = lambda: None
        """Called once, when the server drains and no live request is left."""
        self.on_blame: Callable[[str, int], None] = lambda name, epoch: None

    # --- the supervisor's side ---

    def begin(self, message: say.Begin) -> None:
        """The lanes are new: submit all unfinished requests again."""
        self.facts = message.facts
        self.reset()
        self._connected = True
        self._quarantine.begin(frozenset(message.restarted), message.epoch)
        for suspect in (*self._lives.values(), *self._calls):
            if not self._quarantine.take_back(suspect):
                self._give_up(suspect, EngineError("the engine failed on this request repeatedly"))
        self._quarantine.go_on()

    def reset(self) -> None:
        """The lanes are gone. Keep all requests and send nothing until `begin`."""
        self._connected = False
        self._quarantine.clear()
        for lane in (*self._lanes, self.images):
            lane.clear()

    def health(self, message: say.Health) -> None:
        self.state = message
        for live in [live for live in self._lives.values() if live.open]:
            if (error := validation.unavailable(live.request, message.away)) is not None:
                self._give_up(live, error)
        self._check_drained()

    def flush(self) -> None:
        """The lanes may have room again: send waiting messages."""
        for lane in (*self._lanes, self.images):
            lane.flush()

    @property
    def live(self) -> int:
        """Requests admitted and not yet closed by their consumer: also token counts, and those that still arrive."""
        return self.limits.live

    @property
    def ready(self) -> bool:
        """The engine serves new requests at once."""
        return self._connected and self.state.ok and not self.state.draining

    @property
    def trouble(self) -> str:
        """Why the engine makes no progress; empty if it does."""
        if self.facts is None:
            return "starting"
        if not self.state.ok:
            return self.state.reason or "unhealthy"
        return "" if self._connected else "repairing"

    def drained(self) -> bool:
        return self.state.draining and not self.live and not self._staying

    def stay(self, staying: bool) -> None:
        """While staying, the front accepts new requests although the server drains."""
        self._staying = staying
        self._check_drained()

    # --- the consumer's side ---

    def submit(
        self,
        prompt: Prompt,
        terms: Terms,
        *,
        add_special_tokens: bool = True,
        images: Sequence[Upload] = (),
        stream: bool = True,
        deadline: float = math.inf,
        label: str = "",
        form: bytes = b"",
        keep: float = 0.0,
        relay: Relay | None = None,
    ) -> LiveRequest:
        """Start a request that must be complete by `deadline` (monotonic); sets its `start_by`. Never blocks. Its
        tenant can `resume` it by its `label`; without one it cannot be resumed. `keep`, `relay`: see LiveRequest.
        Raises InvalidRequest, PayloadTooLarge, PromptTooLong, Overloaded or Unavailable. Later the consumer may get
        QueueTimeout or DeadlineExceeded."""
        self.admit(terms.tenant)
        assert self.facts is not None
        limits = self.facts.engine
        validation.check(prompt, terms, limits, sees=self.images.takes_images)
        self.images.check(images, limits.max_input)
        request = say.Generate(
            rid=self._rids(terms.n),
            terms=replace(terms, start_by=self._deadlines.start_by(deadline)),
            text=prompt if isinstance(prompt, str) else None,
            ids=prompt if isinstance(prompt, bytes) else None,
            chat=prompt if isinstance(prompt, say.ChatPrompt) else None,
            pair=prompt if isinstance(prompt, say.TextPair) else None,
            add_special_tokens=add_special_tokens,
            images=tuple(upload.image for upload in images),
        )
        if (error := validation.unavailable(request, self.state.away)) is not None:
            raise error
        held = self._hold(images, terms.tenant)
        # Its time begins before the tokenizer's.
        live = LiveRequest(request, self, stream, held, deadline, label, form, keep, relay)
        try:
            self._send_new(request)
        except Overloaded:
            self.images.let_go(held)
            raise
        live.sent = self._connected
        self.limits.enter(terms.tenant)
        self._send_images(live, live.rid)
        self._enter(live)
        if label:
            self.retained.name(live)
        if label and (self.retained.seconds or keep or relay):
            self.journal.add(live)
        self.observer.accepted(live)
        return live

    async def ask(
        self, request: Callable[[int], say.Count | say.Detokenize], tenant: bytes, deadline: float
    ) -> say.Counted | say.Detokenized:
        """The tokenizer's answer to the request with this rid, by `deadline` (monotonic). Raises like `submit`, or
        DeadlineExceeded."""
        self.admit(tenant)
        asked = request(self._rids(1))
        self._send_new(asked)
        self.limits.enter(tenant)
        call = TokenizerCall(asked, sent=self._connected)
        try:
            return await self._calls.result(call, deadline)
        finally:
            self._quarantine.left(call)
            self.limits.leave(tenant)
            self._check_drained()

    def forget(self, live: LiveRequest) -> None:
        """The consumer is done with `live`; called by LiveRequest.close(). It may come back to it for a while."""
        self._abort(live)
        if self._lives.pop(live.rid, None) is not None:
            self._quarantine.left(live)
            self.limits.leave(live.request.terms.tenant)
            self.observer.ended(live)
        if not (live.open or live.keep):
            self._let_images_go(live)
        self.retained.left(live)
        self._check_drained()

    def record(self, live: LiveRequest, first: int, data: bytes) -> None:
        self.journal.seen(live, first, data)

    def admit(self, tenant: bytes) -> None:
        """Check that a request of this tenant may enter now. Raises Overloaded or Unavailable."""
        if self.facts is None:
            self.observer.refused("starting")
            raise Unavailable("the server is starting")
        if self.state.draining and not self._staying:
            self.observer.refused("draining")
            raise Unavailable("the server is shutting down")
        if reason := self.limits.refusal(tenant):
            self.observer.refused(reason)
            whose = f"{self.limits.most} requests are" if reason == FULL else "this key's share of requests is"
            raise Overloaded(f"{whose} live already", retry_after=self.limits.retry_after())

    # --- the engine's side ---

    def deliver(self, message: Wire) -> None:
        """Handle a message from the tokenizer, router, detokenizer or visual actor. Drops unknown rids."""
        if isinstance(message, say.Texts):
            self._texts(message)
        elif isinstance(message, say.Rejected):
            self._rejected(message)
        elif isinstance(message, say.ImageFailed) and message.rid in self._answers:
            self._give_up(self._answers[message.rid].live, message.error.rebuilt())
            self.limits.finished()
        elif isinstance(message, say.Counted | say.Detokenized):
            self._calls.deliver(message)
        elif isinstance(message, say.Scheduled):
            answer = self._answers.get(message.rid)
            if answer is not None and not answer.live.scheduled:
                answer.live.scheduled, answer.live.came = monotonic(), message
        elif isinstance(message, say.PromptLogprobs) and message.rid in self._answers:
            live = self._answers[message.rid].live
            live.prompt_logprobs.append(message)
            if not message.more:
                self.journal.prompt(live)
        elif isinstance(message, say.Pooled) and message.rid in self._answers:
            self._pooled(self._answers.pop(message.rid), message)

    def _texts(self, m: say.Texts) -> None:
        now, tokens, gaps = monotonic(), 0, list[float]()
        for answer, event in token_events(m, self._answers):
            tokens += event.id >= 0
            self._pass_on(answer, event, now, gaps)
            if m.begun and event.finish is not None:
                answer.live.detokenized = m.begun
        self.observer.tokens(tokens, gaps)

    def _pass_on(self, answer: Answer, event: Event, now: float, gaps: list[float]) -> None:
        live = answer.live
        if event.id >= 0 and live.fruitless:
            self._quarantine.cleared(live)
        self.answer_bytes += live.put(answer, event)
        if answer.last:
            gaps.append(now - answer.last)
        elif not live.first:
            live.first = now
            self.observer.first_token(live, now - live.started)
        answer.last = now
        if event.finish is not None:
            del self._answers[answer.rid]
            if not live.open:
                self.limits.finished()
        if not live.stream and (event.finish is not None or len(live.order) - live.recorded.at >= RECORDED):
            self.journal.events(live)
        if live.overflows:
            self._overflow(live)
        if self.answer_bytes > self._most_answer_bytes:
            self._shed()

    def _shed(self) -> None:
        """The answers take too much memory: drop one that is retained, or fail the largest."""
        running = (live for live in self._lives.values() if live.error is None)
        largest = max(running, key=lambda live: live.bytes, default=None)
        if not self.retained.evict() and largest is not None:
            message = "answers of live requests take all memory for them, this one most"
            self._give_up(largest, Overloaded(message, retry_after=self.limits.retry_after()))

    def _overflow(self, live: LiveRequest) -> None:
        live.fail(SlowReader("the client reads too slowly"), drop=True)
        self._abort(live)
        if live.on_overflow is not None:
            live.on_overflow()

    def _pooled(self, answer: Answer, message: say.Pooled) -> None:
        live, now = answer.live, monotonic()
        live.first = answer.last = now
        self.answer_bytes += live.put_row(answer, message)
        self.observer.first_token(live, now - live.started)
        self.limits.finished()

    def _rejected(self, message: say.Rejected) -> None:
        if self._calls.deliver(message):
            return
        if (answer := self._answers.pop(message.rid, None)) is not None:
            live = answer.live
            if live.images:
                self.images.abort(answer.rid)
            # The other n - 1 answers are rejected with it, or still run if they were resumed one by one.
            self._give_up(live, message.error.rebuilt())
            self.limits.finished()

    # --- internals ---

    def _enter(self, live: LiveRequest) -> None:
        """The request is live, with those of its answers that have not finished."""
        self._deadlines.watch(live)
        self._lives[live.rid] = live
        self._answers.update((answer.rid, answer) for answer in live.answers if answer.finish is None)

    def _dropped(self, live: LiveRequest) -> None:
        """Nobody comes back to it."""
        self._let_images_go(live)
        self.answer_bytes -= live.bytes

    def _let_images_go(self, live: LiveRequest) -> None:
        self.images.let_go(live.images)
        live.images = ()

    def _hold(self, images: Sequence[Upload], tenant: bytes) -> tuple[Upload, ...]:
        """Keep image files; those that the largest holder retains make room for new ones."""
        while True:
            try:
                return self.images.hold(images, tenant)
            except Overloaded:
                if not self.retained.evict_images(self.images.largest_holder()):
                    raise

    def _send_new(self, request: Wire) -> None:
        if self._connected and not self._lanes[0].offer(request):
            self.observer.refused("lane_full")
            raise Overloaded("the request queue is full", retry_after=self.limits.retry_after())

    def _give_up(self, live: LiveRequest | TokenizerCall, error: EngineError) -> None:
        if isinstance(live, LiveRequest):
            self._abort(live)
        live.fail(error)

    def _submit_again(self, live: LiveRequest | TokenizerCall) -> None:
        live.sent = True
        if isinstance(live, TokenizerCall):
            self._lanes[0].push(live.request)
            return
        for answer in live.answers:
            if answer.rid in self._answers:
                self._lanes[0].push(live.again(answer))
                self._send_images(live, answer.rid)

    def _rids(self, n: int) -> int:
        first = self._next_rid
        self._next_rid += n
        return first

    def _abort(self, live: LiveRequest) -> None:
        """Abort the unfinished answers of `live` in the engine."""
        for answer in live.answers:
            if self._answers.pop(answer.rid, None) is not None and self._connected:
                for lane in self._lanes:
                    lane.push(say.Abort(answer.rid))
                if live.images:
                    self.images.abort(answer.rid)

    def _send_images(self, live: LiveRequest, rid: int) -> None:
        if live.images and self._connected:
            self.images.push(rid, live.images)

    def _check_drained(self) -> None:
        if self.drained() and not self._drained:
            self._drained = True
            self.on_drained()
