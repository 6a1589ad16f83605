"""The guide actor in this process: what it answers to the router, what it sends to the worker, and what it forgets."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightllm_mp.actors.guide import GuideActor
from lightllm_mp.actors.runtime.actor_settings import GuideSettings
from lightllm_mp.actors.topology import ROUTER, worker
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import (
    Advance,
    Begin,
    CloseGuide,
    Forced,
    Guide,
    GuideReady,
    Masks,
    NeedMasks,
    OpenGuide,
    Rejected,
    Wire,
)
from tests.guides.guided import tokenizer
from tests.models.default_model import default_model

LETTERS = Guide("regex", "[ab]{2,3}")


class World:
    """The actor, with its mailbox; `settle` gives the compiling threads their time."""

    def __init__(self) -> None:
        path = default_model()
        if path is None:
            pytest.skip("the default model is not installed")
        self.sent: list[tuple[str, Wire]] = []
        launch: Any = SimpleNamespace(model=SimpleNamespace(path=str(path)), settings=GuideSettings("auto"))
        mailbox: Any = SimpleNamespace(
            post=lambda peer, message: self.sent.append((peer, message)), bell=SimpleNamespace(ring=lambda: None)
        )
        self.gauges: dict[str, float] = {}
        stats: Any = SimpleNamespace(write=self.gauges.update)
        self.actor = GuideActor(launch, mailbox, stats)
        self.size = tokenizer().vocab_size
        self.epoch = 0
        self.begin()

    def begin(self) -> None:
        self.epoch += 1
        self.actor.on_reset()
        self.actor.on_begin(Begin(self.epoch, Facts(engine=EngineLimits(vocab_size=self.size), eos_ids=(2,))))

    def say(self, *messages: Wire) -> list[tuple[str, Wire]]:
        """What the actor sends; it waits for answers to OpenGuide."""
        self.sent.clear()
        for message in messages:
            self.actor.on_message(ROUTER, message)
        deadline = time.monotonic() + 30
        self.actor.after_batch()
        while self.actor.compiling:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            self.actor.after_batch()
        return list(self.sent)


def rids(*numbers: int) -> bytes:
    return np.array(numbers, "<i8").tobytes()


def ids(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes()


def token(text: str) -> int:
    (found,) = tokenizer().encode(text, add_special_tokens=False).tolist()
    return found


def need(step: int, *pairs: tuple[int, int]) -> NeedMasks:
    """(rid, count) of each answer."""
    return NeedMasks(step, rids(*(rid for rid, _ in pairs)), ids(*(count for _, count in pairs)))


def allowed(message: Wire, size: int) -> list[set[str]]:
    assert isinstance(message, Masks)
    bits = np.frombuffer(message.bits, np.uint8).reshape(-1, 4 * -(-size // 32))
    rows = np.unpackbits(bits, axis=1, bitorder="little", count=size)
    return [{tokenizer().decode([i], skip_special_tokens=False) for i in np.flatnonzero(row)} for row in rows]


def test_masks_follow_the_ids() -> None:
    world = World()
    ready = world.say(OpenGuide(1, LETTERS, n=2), OpenGuide(5, Guide("regex", "c")))
    assert sorted(ready, key=repr) == [(ROUTER, GuideReady(1)), (ROUTER, GuideReady(5))]
    ((peer, masks),) = world.say(need(7, (1, 0), (5, 0), (2, 0)))
    assert peer == worker(0)
    assert masks.step == 7  # type: ignore[attr-defined]
    both, other, same = allowed(masks, world.size)
    assert {"a", "b"} <= both == same
    assert other == {"c"}
    (sent,) = world.say(Advance(rids(1, 2), ids(token("a"), token("b"))), need(8, (1, 1), (2, 1)))
    assert all("<|im_end|>" not in row for row in allowed(sent[1], world.size))
    (sent,) = world.say(Advance(rids(1), ids(token("b"))), need(9, (1, 2)))
    assert allowed(sent[1], world.size) == [{"a", "b", "<|im_end|>"}]


def test_a_mask_that_is_wanted_early_waits_for_its_id() -> None:
    """With run-ahead a step is planned before the one before it is answered; masks come in the order of steps."""
    world = World()
    world.say(OpenGuide(1, LETTERS), OpenGuide(2, LETTERS))
    assert len(world.say(need(1, (1, 0)), need(2, (1, 1)), need(3, (2, 0)))) == 1
    steps = [message.step for _, message in world.say(Advance(rids(1), ids(token("a"))))]  # type: ignore[attr-defined]
    assert steps == [2, 3]


def test_an_answer_that_has_ended_holds_nobody_up() -> None:
    world = World()
    world.say(OpenGuide(1, LETTERS))
    assert not world.say(need(2, (1, 1)))
    (sent,) = world.say(CloseGuide(1))
    assert len(allowed(sent[1], world.size)[0]) > 1000
    assert world.gauges["open"] == 0


def test_emitted_ids_are_taken_again() -> None:
    world = World()
    world.say(OpenGuide(1, LETTERS, emitted=ids(token("a"), token("b"), token("a"))))
    (sent,) = world.say(need(1, (1, 3)))
    assert allowed(sent[1], world.size) == [{"<|im_end|>"}]


def test_a_wrong_guide_is_refused_and_leaves_nothing() -> None:
    world = World()
    ((peer, refused),) = world.say(OpenGuide(1, Guide("regex", "((")))
    assert peer == ROUTER
    assert isinstance(refused, Rejected)
    assert (refused.error.status, refused.error.code) == (400, "invalid_guide")
    assert world.gauges == {"open": 0, "masks": 0, "refused": 1}


def test_a_request_that_leaves_while_its_guide_is_compiled() -> None:
    world = World()
    world.say(OpenGuide(1, LETTERS), CloseGuide(1), CloseGuide(2))
    world.actor.compilers.shutdown(wait=True)
    world.actor.after_batch()
    assert not world.sent
    assert world.gauges["open"] == 0


def test_a_guide_of_the_epoch_before_opens_nothing() -> None:
    world = World()
    world.actor.on_message(ROUTER, OpenGuide(1, LETTERS))
    world.begin()
    world.actor.compiling.add(1)  # asked again, under the same number
    world.actor.compilers.shutdown(wait=True)
    world.actor.after_batch()
    assert not world.sent


def test_a_dead_end_is_told_by_an_empty_mask_and_compiled_anew() -> None:
    world = World()
    world.say(OpenGuide(1, LETTERS))
    first = world.actor.library.compiler.compile(LETTERS)
    (sent,) = world.say(Advance(rids(1), ids(token("c"))), need(1, (1, 1)))
    assert allowed(sent[1], world.size) == [set()]
    assert world.actor.library.compiler.compile(LETTERS) is not first


def test_a_guide_that_is_known_does_not_wait_behind_others() -> None:
    world = World()
    world.say(OpenGuide(1, LETTERS))
    world.actor.compilers.shutdown(wait=True)
    assert world.say(OpenGuide(2, LETTERS)) == [(ROUTER, GuideReady(2))]


def test_without_the_library_guides_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightllm_mp.guides.compiler", None)
    ((_, refused),) = World().say(OpenGuide(1, LETTERS))
    assert isinstance(refused, Rejected)
    assert (refused.error.status, refused.error.code) == (400, "invalid_guide")


def test_forced_ids_are_told_once() -> None:
    world = World()
    text = Guide("regex", "[ab]the name of the person( is|s)", jump=True)
    world.say(OpenGuide(1, text))
    ((peer, forced),) = world.say(Advance(rids(1), ids(token("a"))))
    assert peer == ROUTER
    assert isinstance(forced, Forced)
    assert (forced.rid, forced.count) == (1, 1)
    run = np.frombuffer(forced.ids, "<i4").tolist()
    assert "the name of the person".startswith(tokenizer().decode(run))
    (sent,) = world.say(Advance(rids(1), ids(run[0])), need(1, (1, 2)))
    assert allowed(sent[1], world.size) == [{tokenizer().decode([run[1]])}]
    assert not world.say(Advance(rids(1, 1), ids(*run[1:3])))


def test_a_bug_in_a_thread_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(world.actor.library, "open", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.say(OpenGuide(1, LETTERS))
