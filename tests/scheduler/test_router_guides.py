"""The router between tokenizer, guide and worker: a constrained request runs when its guide is ready, and leaves
nothing in the guide actor, whenever its client leaves or a process dies."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from lightllm_mp.actors.topology import GUIDE, ROUTER, TOKENIZER, VISUAL, worker
from lightllm_mp.errors import InvalidGuide
from lightllm_mp.messages import (
    Abort,
    Advance,
    CloseGuide,
    ErrorInfo,
    Guide,
    GuideReady,
    NeedMasks,
    OpenGuide,
    Rejected,
    Tokenized,
    Wire,
)
from tests.scheduler.harness import EOS, VOCAB, prompt, request
from tests.scheduler.mock_guide import MockGuide
from tests.scheduler.mock_worker import expected
from tests.scheduler.test_router_images import FRONT, World, picture

RIGHT, WRONG = Guide("regex", "a"), Guide("regex", "(")
REFUSED = ErrorInfo.of(InvalidGuide("wrong"))


class GuidedWorld(World):
    """A world with a guide actor, whose answers wait in its lane."""

    def __init__(self) -> None:
        self.guide = MockGuide(VOCAB)
        super().__init__()
        self.lanes[GUIDE] = deque()

    def begin(self, *restarted: str) -> None:
        self.guide.reset()
        super().begin(*restarted)

    def post(self, peer: str, message: Wire) -> None:
        match message:
            case OpenGuide(rid, guide):
                assert peer == GUIDE
                if guide == WRONG:
                    self.lanes[GUIDE].append(Rejected(rid, REFUSED))
                    return
                self.guide.open(self.requests[rid])
                self.lanes[GUIDE].append(GuideReady(rid))
            case Advance() | NeedMasks():
                assert peer == GUIDE
                self.guide.hear(message)
            case CloseGuide(rid):
                assert peer == GUIDE
                self.guide.close(rid)
            case _:
                super().post(peer, message)

    def work(self) -> None:
        if self.plans:
            plan = self.plans.popleft()
            self.say(worker(0), self.worker.step(plan, self.guide.masks(self.worker.waits(plan))))

    def run(self) -> None:
        super().run()
        assert not self.guide.open_rids
        assert not self.router._compiling

    def check(self, rid: int) -> None:
        asked = self.requests[rid]
        ids = np.frombuffer(asked.ids, "<i4").tolist()
        allowed = self.guide.allowed if asked.terms.guide else None
        rules = {"eos_ids": (EOS,), "vocab_size": VOCAB, "longest": 120, "allowed": allowed}
        assert self.ids[rid] == expected(ids, asked.terms.sampling, **rules)  # type: ignore[arg-type]


def test_a_request_waits_for_its_guide_and_others_do_not() -> None:
    world = GuidedWorld()
    world.ask(request(1, prompt(9), guide=RIGHT))
    world.ask(request(2, prompt(9, 2)))
    world.deliver(TOKENIZER)
    assert not world.plans
    world.deliver(TOKENIZER)
    while world.plans:
        world.work()
    world.check(2)
    assert 1 not in world.ids
    world.run()
    world.check(1)


def test_a_refused_guide_ends_its_request() -> None:
    world = GuidedWorld()
    world.ask(request(1, prompt(9), guide=WRONG, n=3))
    world.ask(picture(5, "cat", guide=WRONG))
    world.run()
    assert world.ended == {1, 5}
    assert world.images.released == [5]


def test_a_request_that_does_not_fit_leaves_the_guide() -> None:
    world = GuidedWorld()
    world.ask(request(1, prompt(90), guide=RIGHT, n=2))
    world.run()
    assert world.ended == {1}


@pytest.mark.parametrize("seed", range(20))
def test_aborts_deaths_and_images_at_random(seed: int) -> None:
    world, random = GuidedWorld(), np.random.default_rng(seed)
    given_up: set[int] = set()
    lanes = (FRONT, TOKENIZER, VISUAL, GUIDE)
    for rid in range(1, 50):
        guide = (RIGHT, RIGHT, None, WRONG)[int(random.integers(4))]
        names = ["cat"] * int(random.random() < 0.3)
        world.ask(picture(rid, *names, guide=guide, max_new_tokens=int(random.integers(1, 12))))
        for _ in range(int(random.integers(0, 7))):
            what = random.random()
            ready = [name for name in lanes if world.lanes[name]]
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
                world.begin(str(random.choice([GUIDE, VISUAL, ROUTER, worker(0)])))
                for one, asked in world.requests.items():
                    if one not in world.ended | given_up:
                        world.ids.pop(one, None)
                        world.ask(asked)
    world.run()
    for rid, asked in world.requests.items():
        if rid not in given_up and asked.terms.guide != WRONG:
            world.check(rid)


def test_an_abort_after_the_guide_was_opened() -> None:
    world = GuidedWorld()
    asked: Tokenized = request(1, prompt(9), guide=RIGHT, n=2)
    world.ask(asked)
    world.deliver(TOKENIZER)
    assert world.guide.open_rids == {1, 2}
    world.say(FRONT, Abort(1))
    assert not world.guide.open_rids
    world.run()  # GuideReady comes for a request that is gone
    assert not world.ids
