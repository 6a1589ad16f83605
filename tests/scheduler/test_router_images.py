"""The router between tokenizer, visual actor and worker: halves come in any order, and every lease comes back once."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightllm_mp.actors.router import RouterActor
from lightllm_mp.actors.runtime.actor_settings import RouterSettings
from lightllm_mp.actors.topology import DETOKENIZER, ROUTER, TOKENIZER, VISUAL, worker
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import (
    Abort,
    Begin,
    Embedded,
    ErrorInfo,
    ImageFailed,
    Rejected,
    Release,
    Tokenized,
    Tokens,
    Wire,
)
from tests.scheduler.harness import EOS, VOCAB, prompt, request
from tests.scheduler.mock_images import MockImages, image_prompt
from tests.scheduler.mock_worker import MockWorker, expected

FRONT = "http"
FACTS = Facts(
    engine=EngineLimits(
        vocab_size=VOCAB,
        max_context=120,
        max_input=80,
        kv_tokens=200,
        rows=4,
        step_tokens=16,
        run_ahead=1,
    ),
    eos_ids=(EOS,),
)
FAILED = ErrorInfo(400, "broken", "invalid_request_error", "invalid_image")


class World:
    """A router, its messages, and the actors around it. A lane to the router keeps its own order only."""

    def __init__(self) -> None:
        settings = RouterSettings(workers=("worker0",), share_prompt_cache=False, traced=False)
        launch: Any = SimpleNamespace(front=FRONT, settings=settings)
        mailbox: Any = SimpleNamespace(post=self.post, send_plan=lambda name, plan: self.plans.append(plan) or True)
        stats: Any = SimpleNamespace(write=lambda gauges: None)
        self.router = RouterActor(launch, mailbox, stats)
        self.lanes: dict[str, deque[Wire]] = {name: deque() for name in (FRONT, TOKENIZER, VISUAL)}
        self.images = MockImages(VOCAB)
        self.requests: dict[int, Tokenized] = {}
        self.ids: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.begin()

    def begin(self, *restarted: str) -> None:
        """Begin a new epoch: lanes are empty, and all actors have forgotten their requests."""
        self.plans: deque[bytes] = deque()
        for lane in self.lanes.values():
            lane.clear()
        self.images.reset()
        if not hasattr(self, "worker") or worker(0) in restarted:
            self.worker = MockWorker(rows=4, width=120, kv_tokens=200, vocab_size=VOCAB, images=self.images)
        self.router.on_begin(Begin(1, FACTS, restarted))

    def post(self, peer: str, message: Wire) -> None:
        match message:
            case Release(rid):
                assert peer == VISUAL
                self.images.release(rid)
            case Rejected(rid):
                self.ended.add(rid)
                self.give_up(rid)
            case Tokens():
                assert peer == DETOKENIZER
                columns = (np.frombuffer(message.rids, "<i8"), np.frombuffer(message.ids, "<i4"))
                for rid, token, finish in zip(*columns, message.finish, strict=True):
                    self.ids.setdefault(int(rid), []).append(int(token))
                    if finish:
                        self.ended.add(int(rid))

    def say(self, peer: str, message: Wire) -> None:
        self.router.on_message(peer, message)
        self.router.after_batch()

    def deliver(self, peer: str) -> None:
        self.say(peer, self.lanes[peer].popleft())

    def work(self) -> None:
        """Answer one step."""
        if self.plans:
            self.say(worker(0), self.worker.step(self.plans.popleft()))

    def run(self) -> None:
        """Run until no message is left; then no lease may be held."""
        while any(self.lanes.values()) or self.plans:
            for name, lane in self.lanes.items():
                if lane:
                    self.deliver(name)
            self.work()
        assert not self.images.leases
        assert not len(self.router._halves)
        scheduler = self.router._scheduler
        assert scheduler is not None
        assert not scheduler.has_work
        scheduler.check_integrity()

    # --- the other actors

    def ask(self, asked: Tokenized) -> None:
        self.requests[asked.rid] = asked
        self.lanes[TOKENIZER].append(asked)
        self.see(asked)

    def see(self, asked: Tokenized) -> None:
        if asked.spans:
            self.lanes[VISUAL].append(self.images.embed(asked))

    def give_up(self, rid: int) -> None:
        """Abort follows the request on every lane to the router, as the front sends it."""
        for lane in self.lanes.values():
            lane.append(Abort(rid))

    def check(self, rid: int) -> None:
        asked = self.requests[rid]
        ids = np.frombuffer(asked.ids, "<i4").tolist()
        rules = {"eos_ids": (EOS,), "vocab_size": VOCAB, "longest": 120}
        assert self.ids[rid] == expected(ids, asked.terms.sampling, **rules)  # type: ignore[arg-type]


def picture(rid: int, *names: str, **rules: Any) -> Tokenized:
    parts = [part for name in names for part in ((name, 5), prompt(3, rid))]
    ids, spans = image_prompt(VOCAB, prompt(2, rid % 3), *parts)
    return request(rid, ids, spans=spans, **rules)


@pytest.mark.parametrize("order", [(TOKENIZER, VISUAL), (VISUAL, TOKENIZER)])
def test_the_halves_may_come_in_any_order(order: tuple[str, str]) -> None:
    world = World()
    world.ask(picture(1, "cat", "dog", "cat"))
    world.deliver(order[0])
    assert not world.plans
    world.deliver(order[1])
    assert world.plans
    world.run()
    world.check(1)
    assert world.images.released == [1]


def test_text_does_not_wait_for_images() -> None:
    world = World()
    world.ask(picture(1, "cat"))
    world.ask(request(2, prompt(9)))
    world.deliver(TOKENIZER)
    world.deliver(TOKENIZER)
    while world.plans:
        world.work()
    world.check(2)
    assert 1 not in world.ids
    world.run()
    world.check(1)


LANES = (FRONT, TOKENIZER, VISUAL)


@pytest.mark.parametrize("seed", range(40))
def test_abort_between_any_two_messages(seed: int) -> None:
    """Lanes are read in a random order, so that an Abort meets its request in every state."""
    world, random = World(), np.random.default_rng(seed)
    for rid in (1, 2, 3):
        world.ask(picture(rid, "cat", "dog"))
    for rid in (1, 3):
        world.give_up(rid)
    while ready := [name for name in LANES if world.lanes[name]]:
        world.deliver(str(random.choice(ready)))
        if random.random() < 0.3:
            world.work()
    world.run()
    world.check(2)
    assert sorted(world.images.released) == [1, 2, 3]


@pytest.mark.parametrize("late", [False, True])
def test_an_image_that_fails(late: bool) -> None:
    """The visual actor gives the router no embeddings; the front sends Abort after the prompt."""
    world = World()
    asked = picture(1, "cat")
    messages = [(TOKENIZER, asked), (VISUAL, ImageFailed(1, FAILED)), (FRONT, Abort(1)), (TOKENIZER, Abort(1))]
    for peer, message in [messages[1], messages[0], *messages[2:]] if late else messages:
        world.say(peer, message)
    world.run()
    assert not world.ids


def test_a_prompt_that_the_tokenizer_refuses() -> None:
    """Only the embeddings arrive."""
    world = World()
    world.see(picture(1, "cat"))
    world.deliver(VISUAL)
    assert world.images.leases
    world.give_up(1)
    world.run()
    assert world.images.released == [1]


def test_a_request_that_does_not_fit_gives_its_lease_back() -> None:
    world = World()
    world.ask(picture(1, *["cat"] * 12))
    world.run()
    assert world.ended == {1}
    assert world.images.released == [1]


def test_a_new_epoch_forgets_halves() -> None:
    world = World()
    for rid in (1, 2):
        world.ask(picture(rid, "cat"))
    world.deliver(TOKENIZER)
    world.deliver(VISUAL)
    world.deliver(VISUAL)
    world.begin(VISUAL)
    assert not len(world.router._halves)
    world.ask(picture(3, "cat"))
    world.run()
    world.check(3)
    assert world.images.released == [3]


@pytest.mark.parametrize("seed", range(12))
def test_many_requests_with_aborts_failures_and_deaths(seed: int) -> None:
    """A lease that comes back twice is a KeyError of the mock. `run` finds a lost lease. A lease that comes back too
    early shows a worker other embeddings."""
    world, random = World(), np.random.default_rng(1000 + seed)
    given_up: set[int] = set()
    for rid in range(1, 60):
        names = [f"image {random.integers(6)}" for _ in range(int(random.integers(0, 4)))]
        world.ask(picture(rid, *names, max_new_tokens=int(random.integers(1, 12))))
        for _ in range(int(random.integers(0, 6))):
            what = random.random()
            ready = [name for name in LANES if world.lanes[name]]
            if what < 0.6 and ready:
                world.deliver(str(random.choice(ready)))
            elif what < 0.9:
                world.work()
            elif what < 0.97:
                gone = int(random.integers(1, rid + 1))
                if gone not in world.ended | given_up:
                    given_up.add(gone)
                    world.give_up(gone)
            else:
                revive(world, str(random.choice([VISUAL, ROUTER, worker(0)])), given_up)
    world.run()
    for rid in set(world.requests) - given_up:
        world.check(rid)


def revive(world: World, dead: str, given_up: set[int]) -> None:
    """A process died: ask every unfinished request again, from the start."""
    world.begin(dead)
    for rid, asked in world.requests.items():
        if rid not in world.ended | given_up:
            world.ids.pop(rid, None)
            world.ask(asked)


def test_an_embedded_for_nobody_is_kept_for_its_abort() -> None:
    world = World()
    world.say(FRONT, Abort(4))
    world.say(VISUAL, world.images.embed(picture(4, "cat")))
    assert isinstance(world.router._halves._embedded[4], Embedded)
    world.say(VISUAL, Abort(4))
    assert world.images.released == [4]
