"""The guide actor: it knows what constrained answers may say next. It owns their grammars and where each stands in its
own.

It computes the masks of a step while the workers compute its logits. Grammars are compiled in threads, beside that. The
library and the vocabulary are loaded for the first constrained request.
"""

from __future__ import annotations

import resource
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.actor_settings import GuideSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER, worker
from lightllm_mp.errors import EngineError, InvalidGuide, NoTokenizer
from lightllm_mp.facts import Facts
from lightllm_mp.machine import physical_cores
from lightllm_mp.messages import (
    Advance,
    Begin,
    CloseGuide,
    ErrorInfo,
    Forced,
    Guide,
    GuideReady,
    Masks,
    NeedMasks,
    OpenGuide,
    Rejected,
    Wire,
)

if TYPE_CHECKING:
    from lightllm_mp.guides.compiler import GuideCompiler
    from lightllm_mp.guides.matcher import GuideMatcher, MaskWriter

MEMORY = 4 << 30
"""Most bytes of this process. Each grammar has limits; all of them together end this process, and not the machine."""
COMPILERS = 2
"""Threads that compile."""
MASK_THREADS = 8
"""Most threads that compute masks."""


class GuideActor(BlockingActor):
    def __init__(self, launch: LaunchSpec[GuideSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._path, self._mode = Path(launch.model.path), launch.settings.tokenizer_mode
        self.library = Library()
        self.compilers = ThreadPoolExecutor(COMPILERS, "compile")
        self._compiled: SimpleQueue[_Compiled | BaseException] = SimpleQueue()
        self.compiling: set[int] = set()
        self._facts = Facts()
        self._epoch = 0
        self._matchers: dict[int, GuideMatcher] = {}
        self._guides: dict[int, Guide] = {}
        self._wanted: deque[NeedMasks] = deque()
        self._masks = self._refused = 0

    def run(self) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        super().run()

    def on_begin(self, begin: Begin) -> None:
        self._facts, self._epoch = begin.facts, begin.epoch

    def on_reset(self) -> None:
        for state in (self.compiling, self._matchers, self._guides, self._wanted):
            state.clear()

    def on_message(self, peer: str, message: Wire) -> None:
        match message:
            case NeedMasks():
                self._wanted.append(message)
            case Advance():
                rids, ids = np.frombuffer(message.rids, "<i8"), np.frombuffer(message.ids, "<i4")
                for rid, token in zip(rids.tolist(), ids.tolist(), strict=True):
                    self._take_id(rid, token)
            case OpenGuide():
                self.compiling.add(message.rid)
                if self.library.knows(message.guide):  # it need not wait behind others
                    self._compile(message, self._epoch, self._facts)
                else:
                    self.compilers.submit(self._compile, message, self._epoch, self._facts)
            case CloseGuide(rid):
                self._matchers.pop(rid, None)
                self._guides.pop(rid, None)
                self.compiling.discard(rid)

    def after_batch(self) -> None:
        while not self._compiled.empty():
            self._take(self._compiled.get())
        while self._wanted and (matchers := self._ready(self._wanted[0])) is not None:
            self._send_masks(self._wanted.popleft(), matchers)
        self.stats.write({"open": len(self._matchers), "masks": self._masks, "refused": self._refused})

    # --- compiling, mostly in a thread --------------------------------------------------------------------------------

    def _compile(self, message: OpenGuide, epoch: int, facts: Facts) -> None:
        try:
            self._compiled.put(self.library.open(message, epoch, self._path, self._mode, facts))
        except EngineError as error:
            self._compiled.put(_Compiled(message, epoch, error=ErrorInfo.of(error)))
        except BaseException as error:
            self._compiled.put(error)
        self.mailbox.bell.ring()

    # --- in the actor's thread -----------------------------------------------------------------------------------

    def _take_id(self, rid: int, token: int) -> None:
        if (matcher := self._matchers.get(rid)) is not None:
            knew = bool(matcher.forced)
            matcher.take(token)
            if not knew:
                self._tell_forced(rid, matcher)

    def _tell_forced(self, rid: int, matcher: GuideMatcher) -> None:
        """Tell the router of ids that need no step of their own. The step on its way samples the first."""
        if len(matcher.forced) > 1:
            self.mailbox.post(ROUTER, Forced(rid, matcher.count, np.array(matcher.forced, "<i4").tobytes()))

    def _take(self, compiled: _Compiled | BaseException) -> None:
        if isinstance(compiled, BaseException):
            raise compiled
        rid = compiled.message.rid
        if compiled.epoch != self._epoch or rid not in self.compiling:
            return
        self.compiling.remove(rid)
        if compiled.error is not None:
            self._refused += 1
            self.mailbox.post(ROUTER, Rejected(rid, compiled.error))
            return
        for index, matcher in enumerate(compiled.matchers):
            self._matchers[rid + index], self._guides[rid + index] = matcher, compiled.message.guide
        self.mailbox.post(ROUTER, GuideReady(rid))
        for index, matcher in enumerate(compiled.matchers):
            self._tell_forced(rid + index, matcher)

    def _ready(self, wanted: NeedMasks) -> list[GuideMatcher | None] | None:
        """The step's matchers; None where an answer has ended. None if an answer lacks ids that are on their way."""
        rids, counts = np.frombuffer(wanted.rids, "<i8").tolist(), np.frombuffer(wanted.counts, "<i4").tolist()
        matchers = [self._matchers.get(rid) for rid in rids]
        behind = any(m is not None and m.count < count for m, count in zip(matchers, counts, strict=True))
        return None if behind else matchers

    def _send_masks(self, wanted: NeedMasks, matchers: list[GuideMatcher | None]) -> None:
        bits = self.library.writer.masks(matchers)
        self.mailbox.post(worker(0), Masks(wanted.step, bits.tobytes()))
        self._masks += len(matchers)
        for line in np.flatnonzero(~bits.any(1)):
            rid = int(np.frombuffer(wanted.rids, "<i8")[line])
            self.library.compiler.forget(self._guides[rid])


@dataclass(slots=True)
class _Compiled:
    """What became of a message: its matchers, or an error."""

    message: OpenGuide
    epoch: int
    matchers: list[GuideMatcher] = field(default_factory=list)
    error: ErrorInfo | None = None


class Library:
    """The compiler and the mask writer, made when they are first needed: whoever sends no guide pays for none."""

    compiler: GuideCompiler
    writer: MaskWriter

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded = False

    def knows(self, guide: Guide) -> bool:
        """Whether the guide is compiled already."""
        return self._loaded and self.compiler.knows(guide)

    def open(self, message: OpenGuide, epoch: int, path: Path, mode: str, facts: Facts) -> _Compiled:
        """The matchers of a request, each past the ids that its answer has already. InvalidGuide."""
        with self._lock:
            if not self._loaded:
                self._load(path, mode, facts)
        from lightllm_mp.guides.matcher import GuideMatcher

        compiled, guide = self.compiler.compile(message.guide), message.guide
        matchers = []
        for _ in range(message.n):
            matcher = GuideMatcher(
                compiled.deep_copy(),
                self.compiler.vocabulary,
                after=guide.after,
                ignore_eos=message.ignore_eos,
                jump=guide.jump,
            )
            for token in np.frombuffer(message.emitted, "<i4").tolist():
                matcher.take(token)
            matchers.append(matcher)
        return _Compiled(message, epoch, matchers)

    def _load(self, path: Path, mode: str, facts: Facts) -> None:
        try:
            from lightllm_mp.guides.compiler import GuideCompiler
            from lightllm_mp.guides.matcher import MaskWriter
            from lightllm_mp.guides.vocabulary import GuideVocabulary
        except ImportError as error:
            raise InvalidGuide(f"this server takes no constraints: {error}") from None
        from lightllm_mp.text.tokenizer import load_tokenizer

        try:
            tokenizer = load_tokenizer(path, mode=mode)
        except NoTokenizer:
            raise InvalidGuide("this model has no tokenizer files: it takes no constraints") from None
        vocabulary = GuideVocabulary(tokenizer, facts.engine.vocab_size, facts.eos_ids)
        self.compiler = GuideCompiler(vocabulary)
        self.writer = MaskWriter(vocabulary, min(MASK_THREADS, physical_cores()))
        self._loaded = True
