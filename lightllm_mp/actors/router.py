"""The router actor runs the scheduler. It owns the queue, the KV slots and the plan of every step, but no tensor."""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic

from msgspec.structs import replace

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.actor_settings import RouterSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import DETOKENIZER, GUIDE, VISUAL
from lightllm_mp.errors import EngineError
from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import (
    Abort,
    Advance,
    Begin,
    CloseGuide,
    Embedded,
    ErrorInfo,
    Forced,
    GuideReady,
    ImageFailed,
    Inspect,
    NeedMasks,
    Open,
    OpenGuide,
    Pooled,
    Rejected,
    Release,
    Scheduled,
    StepDone,
    StopMatched,
    Tokenized,
    Wire,
)
from lightllm_mp.scheduler.scheduler import Scheduler

log = logging.getLogger("lightllm_mp.router")

EXPECTED_SECONDS = 0.25
"""Seconds between two estimates of the work that is left."""
PARTS = {Tokenized: "tokenized", Embedded: "embedded", GuideReady: "compiled"}
"""What a request needs -> the field of `Scheduled` that says when it came."""


class RouterActor(BlockingActor):
    def __init__(self, launch: LaunchSpec[RouterSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._front = launch.front
        self._workers = launch.settings.workers
        self._scheduler = Scheduler(EngineLimits())
        """Until the first Begin, a scheduler without capacity."""
        self._expected, self._expected_at = 0.0, 0.0
        """Tokens still to be computed, and when that was estimated (monotonic)."""
        self._halves = ImageHalves()
        self._compiling: dict[int, tuple[Tokenized, Embedded | None]] = {}
        """rid -> a request whose guide is not compiled yet."""
        self._came = ArrivalTimes(launch.settings.traced)
        self._share_prompt_cache = launch.settings.share_prompt_cache
        self._unsent: deque[tuple[str, bytes]] = deque()
        """Plans that their lanes had no room for, with the workers they are for."""
        self._begun = False
        self._run_ahead = 0
        self._was_idle = False

    def on_begin(self, begin: Begin) -> None:
        self._halves.clear()
        self._compiling.clear()
        self._came.clear()
        self._unsent.clear()
        self._run_ahead = begin.facts.engine.run_ahead
        if not self._begun:
            self._begun = True
            shared = self._share_prompt_cache
            limits = replace(begin.facts.engine, eos_ids=begin.facts.eos_ids, share_prompt_cache=shared)
            self._scheduler = Scheduler(limits)
        else:
            # A new worker has empty KV memory, so the prefixes in the tree are gone.
            self._scheduler.reset(keep_cache=not any(name in self._workers for name in begin.restarted))
        self._was_idle = False

    def on_message(self, peer: str, message: Wire) -> None:
        self._came.note(message)
        match message:
            case Tokenized(spans=()):
                self._enter(message, None)
            case Tokenized():
                if (embedded := self._halves.tokenized(message)) is not None:
                    self._enter(message, embedded)
            case Embedded():
                if (tokenized := self._halves.embedded(message)) is not None:
                    self._enter(tokenized, message)
            case GuideReady(rid):
                if (compiled := self._compiling.pop(rid, None)) is not None:
                    self._add(*compiled)
            case Forced():
                self._scheduler.jumps.note(message)
            case Rejected(rid, error):
                if (refused := self._compiling.pop(rid, None)) is not None:
                    self._reject(*refused, error)
            case ImageFailed(rid=rid):
                self._drop(rid)
            case StepDone():
                self._scheduler.done(message)
            case Abort(rid):
                self._drop(rid)
                self._scheduler.abort(rid)
            case StopMatched(rid):
                self._scheduler.stop_matched(rid)
            case Inspect(rids):
                self._tell(rids)

    def _enter(self, request: Tokenized, embedded: Embedded | None) -> None:
        """All that the request needs is here, but for its guide."""
        terms = request.terms
        if terms.guide is None:
            self._add(request, embedded)
            return
        self._compiling[request.rid] = request, embedded
        emitted = request.ids[4 * request.prompt_tokens :]
        opened = OpenGuide(request.rid, terms.guide, terms.n, terms.sampling.ignore_eos, emitted)
        self.mailbox.post(GUIDE, opened)

    def _add(self, request: Tokenized, embedded: Embedded | None) -> None:
        try:
            self._scheduler.add(request, embedded)
        except EngineError as error:
            self._reject(request, embedded, ErrorInfo.of(error))

    def _reject(self, request: Tokenized, embedded: Embedded | None, error: ErrorInfo) -> None:
        self.mailbox.post(self._front, Rejected(request.rid, error))
        self._let_go(request, embedded)

    def _let_go(self, request: Tokenized, embedded: Embedded | None) -> None:
        """Give back what other actors hold for a request that never runs."""
        self._came.drop(request.rid)
        if embedded is not None:
            self.mailbox.post(VISUAL, Release(request.rid))
        if request.terms.guide is not None:
            for rid in _rids(request):
                self.mailbox.post(GUIDE, CloseGuide(rid))

    def _drop(self, rid: int) -> None:
        """Drop the half of a request whose other half will not be served, or one whose guide is not compiled yet."""
        self._came.drop(rid)
        if self._halves.drop(rid):
            self.mailbox.post(VISUAL, Release(rid))
        if (dropped := self._compiling.pop(rid, None)) is not None:
            self._let_go(*dropped)

    def _tell(self, rids: bytes) -> None:
        """Tell the front what happens to these sequences; a full lane loses it."""
        compiling = {rid for request, _ in self._compiling.values() for rid in _rids(request)}
        lacking = self._halves.lacking_images()
        self.mailbox.send(self._front, self._scheduler.state(rids, lacking_images=lacking, compiling=compiling))

    def after_batch(self) -> None:
        """Send plans to the workers, pass on events, and check the scheduler's integrity when it goes idle."""
        scheduler = self._scheduler
        planned, now = False, monotonic()
        while self._sent() and scheduler.in_flight <= self._run_ahead and (plan := scheduler.plan(now)) is not None:
            planned = True
            self._unsent += [(name, plan) for name in self._workers]
        idle = not scheduler.in_flight and not scheduler.has_work
        if idle and not self._was_idle:
            scheduler.check_integrity()
        if planned or idle != self._was_idle:  # before the events: a client with an answer finds it counted
            self.stats.write(scheduler.gauges() | {"expected_tokens": self._expected_tokens(now, idle=idle)})
        self._was_idle = idle
        for event in scheduler.take_events():
            if isinstance(event, Open):
                self.mailbox.post(self._front, self._came.scheduled(event.rid))
            elif isinstance(event, Scheduled):
                event = self._came.scheduled(event.rid)
            if isinstance(event, Rejected) and event.error.status >= 500:
                log.error("request %d fails: %s", event.rid, event.error.message)
            self.mailbox.post(self._listener(event), event)

    def _expected_tokens(self, now: float, *, idle: bool) -> float:
        """It looks at all sequences, so it is not computed with every step."""
        if idle:
            self._expected = 0.0
        elif now - self._expected_at >= EXPECTED_SECONDS:
            self._expected_at, self._expected = now, self._scheduler.expected_tokens()
        return self._expected

    def _sent(self) -> bool:
        """Send what waits. False: a lane is full, and its bell will ring."""
        while self._unsent and self.mailbox.send_plan(*self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def _listener(self, event: Wire) -> str:
        if isinstance(event, Scheduled | Pooled | Rejected):
            return self._front
        if isinstance(event, Advance | NeedMasks | CloseGuide):
            return GUIDE
        return VISUAL if isinstance(event, Release) else DETOKENIZER


class ArrivalTimes:
    """When the parts of requests came that have not begun, for their traces; without `traced` nothing is noted. The
    Abort of a request that never begins comes after its parts, as for `ImageHalves`."""

    def __init__(self, traced: bool) -> None:
        self._traced = traced
        self._times: dict[int, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def note(self, message: Wire) -> None:
        if self._traced and isinstance(message, Tokenized | Embedded | GuideReady):
            self._times.setdefault(message.rid, {})[PARTS[type(message)]] = monotonic()

    def scheduled(self, rid: int) -> Scheduled:
        """The message that the sequence begins."""
        if not self._traced:
            return Scheduled(rid)
        return Scheduled(rid, **self._times.pop(rid, {}), planned=monotonic())

    def drop(self, rid: int) -> None:
        self._times.pop(rid, None)

    def clear(self) -> None:
        self._times.clear()


def _rids(request: Tokenized) -> range:
    """Of all its answers."""
    return range(request.rid, request.rid + request.terms.n)


class ImageHalves:
    """Joins the halves of requests with images: ids from the tokenizer, embeddings from the visual actor, in any order.

    No half stays here for ever: lanes keep order, and a front that gives up a request sends Abort on each lane, so an
    Abort follows every half.
    """

    def __init__(self) -> None:
        self._tokenized: dict[int, Tokenized] = {}
        self._embedded: dict[int, Embedded] = {}

    def __len__(self) -> int:
        return len(self._tokenized) + len(self._embedded)

    def tokenized(self, request: Tokenized) -> Embedded | None:
        """The other half of a request with images; None if it is missing, then this half is held."""
        if (other := self._embedded.pop(request.rid, None)) is None:
            self._tokenized[request.rid] = request
        return other

    def embedded(self, message: Embedded) -> Tokenized | None:
        """The other half; None if it is missing, then this half is held, and with it the lease."""
        if (other := self._tokenized.pop(message.rid, None)) is None:
            self._embedded[message.rid] = message
        return other

    def lacking_images(self) -> set[int]:
        """The rids of requests whose images are not encoded yet."""
        return {rid for request in self._tokenized.values() for rid in _rids(request)}

    def drop(self, rid: int) -> bool:
        """Forget a request that no client waits for. True if a lease has to be given back."""
        self._tokenized.pop(rid, None)
        return self._embedded.pop(rid, None) is not None

    def clear(self) -> None:
        self._tokenized.clear()
        self._embedded.clear()
