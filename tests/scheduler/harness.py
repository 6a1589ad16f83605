"""A scheduler and a mock worker in one process, with a detokenizer's view of the scheduler's events."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import (
    Advance,
    Close,
    CloseGuide,
    ErrorInfo,
    ImageSpan,
    NeedMasks,
    Open,
    Pooled,
    PromptLogprobs,
    Rejected,
    Release,
    Sampling,
    Scheduled,
    StepDone,
    Terms,
    Tokenized,
    Tokens,
)
from lightllm_mp.scheduler.scheduler import Scheduler
from tests.scheduler.mock_guide import MockGuide
from tests.scheduler.mock_images import MockImages
from tests.scheduler.mock_worker import HybridMockWorker, MockWorker, expected

VOCAB = 60
EOS = 2


def limits(**changes: object) -> EngineLimits:
    values: dict[str, object] = {
        "kv_tokens": 400,
        "rows": 8,
        "max_context": 200,
        "max_input": 150,
        "step_tokens": 32,
        "eos_ids": (EOS,),
        "vocab_size": VOCAB,
    }
    return EngineLimits(**{**values, **changes})  # type: ignore[arg-type]


def column(ids: Sequence[int]) -> bytes:
    return np.array(ids, "<i4").tobytes()


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def request(
    rid: int,
    ids: Sequence[int],
    *,
    n: int = 1,
    emitted: Sequence[int] = (),
    spans: tuple[ImageSpan, ...] = (),
    **rules: object,
) -> Tokenized:
    """A request. `rules`: fields of Sampling and of Terms."""
    own = {name: rules.pop(name) for name in Terms.__struct_fields__ if name in rules}
    sampling = Sampling(**{"seed": rid, "max_new_tokens": 8, **rules})  # type: ignore[arg-type]
    terms = Terms(sampling, n=n, **own)  # type: ignore[arg-type]
    return Tokenized(rid=rid, terms=terms, ids=column([*ids, *emitted]), prompt_tokens=len(ids), spans=spans)


class Harness:
    """Plans `depth` steps before the first of them is answered, as with a GPU."""

    def __init__(
        self, scheduler: Scheduler, worker: MockWorker, depth: int = 0, images: MockImages | None = None
    ) -> None:
        self.scheduler, self.worker, self.depth = scheduler, worker, depth
        self.images = images or MockImages(scheduler.limits.vocab_size)
        self.guide = MockGuide(scheduler.limits.vocab_size)
        self.guide.tell = scheduler.jumps.note
        self.plans: deque[bytes] = deque()
        self.requests: dict[int, Tokenized] = {}
        self.opened: dict[int, Open] = {}
        self.closed: set[int] = set()
        self.ids: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.top: dict[int, list[tuple[bytes, bytes]]] = {}
        self.scores: dict[int, PromptLogprobs] = {}
        self.pooled: dict[int, Pooled] = {}
        self.failed: dict[int, ErrorInfo] = {}
        self.scheduled: set[int] = set()
        self.order: list[int] = []
        """rids in the order of their first tokens."""

        # The scheduler's own state, for tests that compare with it or damage it.
        self.rows, self.kv = scheduler._rows, scheduler._kv
        self.live, self.counters = scheduler._live, scheduler._counters

    def add(self, *requests: Tokenized) -> None:
        for new in requests:
            self.scheduler.add(new, self.images.embed(new) if new.spans else None)
            self.requests.update({new.rid + i: new for i in range(new.terms.n)})
            if new.terms.guide is not None:
                self.guide.open(new)

    def step(self) -> bool:
        """Plan a step. If there is none, or more than `depth` are in flight, answer one. False: there is no work."""
        preempted = self.counters.preemptions
        plan = self.scheduler.plan()
        assert not self.plans or self.counters.preemptions == preempted, "a step in flight may free slots"
        if plan is not None:
            self.plans.append(plan)
        elif not self.plans:
            assert not self.scheduler.has_work, "work is left, but nothing is planned"
            return False
        assert self.scheduler.in_flight == len(self.plans)
        if plan is None or len(self.plans) > self.depth:
            self.answer()
        self.listen()
        return True

    def answer(self) -> StepDone:
        self.listen()
        plan = self.plans.popleft()
        done = self.worker.step(plan, self.guide.masks(self.worker.waits(plan)))
        self.scheduler.done(done)
        return done

    def run(self, most: int = 5000) -> Harness:
        """Run until everything is answered; then the bookkeeping must add up."""
        for _ in range(most):
            if not self.step():
                self.scheduler.check_integrity()
                gauges = self.scheduler.gauges()
                assert gauges["kv_used"] == gauges["kv_window_used"] == gauges["running"] == gauges["waiting"] == 0
                assert not self.images.leases
                assert not self.guide.open_rids
                return self
        raise AssertionError(f"not done after {most} steps")

    def resume(self) -> None:
        """Do what the front does in a new epoch: submit unfinished requests again, with the ids it has passed on."""
        self.plans.clear()
        self.images.reset()
        self.guide.reset()
        for rid in [rid for rid in self.requests if rid not in self.finish and rid not in self.closed]:
            asked = self.requests[rid]
            ids = np.frombuffer(asked.ids, "<i4").tolist()
            emitted = [*ids[asked.prompt_tokens :], *self.ids.pop(rid, ())]
            self.opened.pop(rid, None)
            rules = {name: getattr(asked.terms.sampling, name) for name in asked.terms.sampling.__struct_fields__}
            rules["seed"] += rid - asked.rid
            ids = ids[: asked.prompt_tokens]
            again = {
                name: getattr(asked.terms, name) for name in ("priority", "reuse_prompt", "guide", "speculate")
            } | rules
            self.add(request(rid, ids, emitted=emitted, spans=asked.spans, **again))

    def listen(self) -> None:
        for event in self.scheduler.take_events():
            if isinstance(event, Open):
                assert event.rid not in self.opened, "opened twice"
                self.opened[event.rid] = event
                self.ids[event.rid] = []
            elif isinstance(event, PromptLogprobs):
                assert not self.ids[event.rid], "prompt logprobs come before the first token"
                self.scores[event.rid] = event
            elif isinstance(event, Scheduled):
                assert event.rid not in self.scheduled
                self.scheduled.add(event.rid)
            elif isinstance(event, Pooled):
                assert event.rid in self.scheduled
                assert event.rid not in self.pooled
                self.pooled[event.rid] = event
            elif isinstance(event, Rejected):
                assert event.rid not in self.failed
                self.failed[event.rid] = event.error
            elif isinstance(event, Advance | NeedMasks | CloseGuide):
                self.guide.hear(event)
            elif isinstance(event, Release):
                self.images.release(event.rid)
            elif isinstance(event, Close):
                assert event.rid in self.opened
                self.closed.add(event.rid)
            elif isinstance(event, Tokens):
                self._take(event)
            else:
                raise AssertionError(event)

    def _take(self, event: Tokens) -> None:
        rids, ids = np.frombuffer(event.rids, "<i8").tolist(), np.frombuffer(event.ids, "<i4").tolist()
        finish = np.frombuffer(event.finish, np.uint8).tolist()
        assert len(rids) == len(ids) == len(finish) == len(event.logprobs) // 4 > 0
        assert len(set(rids)) == len(rids) or self.scheduler.limits.draft_tokens
        for rid, token, reason in zip(rids, ids, finish, strict=True):
            assert rid in self.opened
            assert rid not in self.finish, "a token after the last one"
            assert rid not in self.closed
            if not self.ids[rid]:
                self.order.append(rid)
            self.ids[rid].append(token)
            if reason:
                self.finish[rid] = reason
        for index, top_ids, top_logprobs in event.top:
            self.top.setdefault(rids[index], []).append((top_ids, top_logprobs))

    def answer_of(self, rid: int) -> list[int]:
        """The ids that `rid` should produce from its first id on, emitted ids included."""
        asked = self.requests[rid]
        sampling = asked.terms.sampling
        rules = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
        rules["seed"] += rid - asked.rid
        given = self.scheduler.limits
        prompt_ids = np.frombuffer(asked.ids, "<i4")[: asked.prompt_tokens].tolist()
        return expected(
            prompt_ids,
            Sampling(**rules),
            eos_ids=given.eos_ids,
            vocab_size=given.vocab_size,
            longest=given.width,
            rope_class=given.rope_class(asked.prompt_tokens),
            allowed=None if asked.terms.guide is None else self.guide.allowed,
        )

    def check_answers(self, *rids: int) -> None:
        """Check that these sequences (by default all) are complete and equal the answers of an undisturbed run."""
        for rid in rids or sorted(self.requests):
            emitted = np.frombuffer(self.requests[rid].ids, "<i4")[self.requests[rid].prompt_tokens :].tolist()
            assert [*emitted, *self.ids[rid]] == self.answer_of(rid), f"sequence {rid}"
            assert rid in self.finish, f"sequence {rid} has no end"


def harness(depth: int = 0, **changes: object) -> Harness:
    given = limits(**changes)
    images = MockImages(given.vocab_size)
    return Harness(Scheduler(given), mock_worker(given, images), depth, images)


def mock_worker(given: EngineLimits, images: MockImages) -> MockWorker:
    sizes = {"rows": given.rows, "width": given.max_context, "kv_tokens": given.kv_tokens}
    if given.states is None:
        windows = {"window": given.window, "window_tokens": given.window_tokens}
        return MockWorker(vocab_size=given.vocab_size, images=images, **windows, **sizes)
    checkpoints = given.states.checkpoints
    return HybridMockWorker(checkpoints=checkpoints, vocab_size=given.vocab_size, images=images, **sizes)
