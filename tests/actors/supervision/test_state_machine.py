"""The supervisor's state machine, without a process: it starts, watches its children, drains and stops."""

from __future__ import annotations

import itertools
import logging

import pytest
from msgspec.structs import replace

from lightllm_mp.actors.supervision.actions import (
    Action,
    Exit,
    Kill,
    Log,
    Progress,
    Send,
    Serving,
    Spawn,
)
from lightllm_mp.actors.supervision.state_machine import (
    EXIT_GAVE_UP,
    EXIT_OK,
    EXIT_START_FAILED,
    STAGE_SHOWN,
    STOP_GRACE,
    State,
)
from lightllm_mp.actors.topology import EMBEDDED
from lightllm_mp.facts import ChatFacts, Facts
from lightllm_mp.messages import Drained, Failed, Health, Loading, Ping, Pong, Ready, ResetDone, Stop
from tests.actors.supervision.fake_server import DIES, SETTINGS, START_ORDER, Server, begins, replaced, running, started

# --- STARTING ---------------------------------------------------------------------------------------------------------


def test_a_start() -> None:
    server = Server()
    assert server.take(server.machine.start()) == [Spawn(START_ORDER)]
    assert server.timers == []
    for name in START_ORDER[1:]:
        assert server.says(name, Ready(Facts())) == []
    server.now = 4.0
    last = server.says("worker0", Ready(Facts(model_name="mock", weight_bytes=100)))
    facts = Facts(model_name="mock", weight_bytes=100)
    assert last == [*begins(server, *START_ORDER), Serving(facts)]
    assert (server.state, server.machine.epoch, server.machine.facts) == (State.RUNNING, 1, facts)
    assert server.log == ["epoch 1: ready after 4.00 s"]


def test_the_front_of_an_embedded_engine_is_an_actor_without_a_process() -> None:
    server = Server(front=EMBEDDED)
    assert server.take(server.machine.start()) == [Spawn(START_ORDER[:-1])]
    assert server.all_say(Ready(Facts()), *START_ORDER[:-1]) == []
    assert server.says(EMBEDDED, Ready(Facts()))[-1] == Serving(Facts())
    assert server.ticks(1.0) == [Send(name, Ping(1)) for name in START_ORDER[:-1]]


def test_facts_are_put_together() -> None:
    server = started()
    server.says("tokenizer", Ready(Facts(eos_ids=(7, 2), chat=ChatFacts(template=True))))
    server.says("worker0", Ready(Facts(model_name="mock", eos_ids=(2, 5))))
    assert server.machine.facts == Facts(model_name="mock", eos_ids=(2, 5, 7), chat=ChatFacts(template=True))


def test_a_death_during_the_start_ends_it() -> None:
    server = started()
    assert server.dies("router") == [Kill("http")]
    assert (server.state, server.machine.reason) == (State.STOPPING, f"start failed: router {DIES}")
    assert [server.dies(name) for name in ("http", "tokenizer", "detokenizer", "guide", "worker0")] == [
        [Kill("tokenizer")],
        [Kill("detokenizer")],
        [Kill("guide")],
        [Kill("worker0")],
        [Exit(EXIT_START_FAILED)],
    ]
    assert server.log == [server.machine.reason]


def test_a_child_that_cannot_start() -> None:
    server = started()
    server.says("worker0", Failed("no weights"))
    assert (server.state, server.machine.reason) == (State.STOPPING, "worker0 cannot start: no weights")


def test_a_start_that_takes_too_long() -> None:
    server = started()
    server.all_say(Ready(Facts()), "http", "tokenizer", "router", "guide")
    server.ticks(0.0)
    server.all_say(Pong(0), "http", "tokenizer", "router", "guide")
    assert server.ticks(60.0) == [Send(name, Ping(0)) for name in ("guide", "router", "tokenizer", "http")]
    server.all_say(Pong(0), "http", "tokenizer", "router", "guide")
    assert server.ticks(0.1) == [Kill("detokenizer", 60.0), Kill("worker0", 60.0), Send("http", Stop())]
    assert server.machine.reason == "start failed: detokenizer, worker0 not ready after 60 s"


def test_a_start_that_is_over_is_not_late() -> None:
    server = running()
    assert server.ticks(10 * SETTINGS.start_timeout) == [Send(name, Ping(1)) for name in START_ORDER]


def test_an_embedded_front_that_does_not_come_fails_the_start() -> None:
    server = started(front=EMBEDDED)
    server.all_say(Ready(Facts()), *START_ORDER[:-1])
    server.ticks(0.0)
    server.all_say(Pong(0), *START_ORDER[:-1])
    server.ticks(60.1)
    assert server.machine.reason == "start failed: engine not ready after 60 s"


def test_a_signal_during_the_start_ends_it() -> None:
    server = started()
    assert server.take(server.machine.drain()) == [Kill("http")]
    assert server.state is State.STOPPING


def test_stages_of_a_start_are_shown_if_they_last() -> None:
    server = started()
    assert server.says("worker0", Loading("one")) == []
    one = server.timers
    assert [timer.seconds for timer in one] == [STAGE_SHOWN]
    assert server.says("worker0", Loading("weights", 1, 2)) == [Progress("worker0", Loading("weights", 1, 2))]
    server.timers = one
    assert server.expire() == []  # the stage of the weights has replaced it
    server.says("worker0", Loading("three"))
    assert server.expire() == [Progress("worker0", Loading("three"))]


@pytest.mark.parametrize("ends", ["ready", "gone", "stopping"])
def test_stages_end_with_the_start(ends: str) -> None:
    server = running()
    server.dies("router")
    server.says("router", Loading("slow"))
    slow = server.timers
    if ends == "ready":
        server.says("router", Ready(Facts()))
    elif ends == "gone":
        server.dies("router")
    else:
        server.machine.stop()
    server.timers = slow
    assert server.expire() == []


# --- the watchdog -----------------------------------------------------------------------------------------------------


def test_children_that_answer_are_pinged_again() -> None:
    server = running()
    pings = [Send(name, Ping(1)) for name in START_ORDER]
    assert server.ticks(2.0) == pings
    assert server.ticks(2.0) == []
    server.all_say(Pong(1), *START_ORDER)
    assert server.ticks(2.0) == pings


def test_a_silent_child_is_a_suspect_and_then_killed() -> None:
    """The tokenizer's patience is two watchdog timeouts."""
    server = running()
    server.ticks(0.0)
    server.all_say(Pong(1), "worker0", "guide", "router", "detokenizer", "http")
    assert server.ticks(9.5) == [Send(name, Ping(1)) for name in ("worker0", "guide", "router", "detokenizer", "http")]
    assert server.ticks(1.0) == [Send("http", Health(False, "tokenizer does not answer"))]
    assert server.log[-1] == "tokenizer has not answered for 10.5 s"
    assert server.ticks(0.5) == []
    server.all_say(Pong(1), "worker0", "guide", "router", "detokenizer", "http")
    assert Kill("tokenizer", 20.5) in server.ticks(9.5)
    assert server.ticks(2.0) == []  # it is killed only once
    assert server.dies("tokenizer")[-1:] == replaced("tokenizer")


def test_a_suspect_that_answers_is_none() -> None:
    server = running()
    server.ticks(0.0)
    server.all_say(Pong(1), *(name for name in START_ORDER if name != "worker0"))
    assert Send("http", Health(False, "worker0 does not answer")) in server.ticks(20.5)
    assert server.says("worker0", Pong(1)) == [Send("http", Health(True))]
    assert server.says("worker0", Pong(1)) == []


def test_who_is_not_ready_is_not_pinged() -> None:
    server = started()
    assert server.ticks(50.0) == []
    server.all_say(Ready(Facts()), *START_ORDER)
    server.dies("router")
    assert server.ticks(0.0) == [Send(name, Ping(2)) for name in START_ORDER if name != "router"]
    server.machine.stop()
    assert server.ticks(100.0) == []


# --- draining and STOPPING --------------------------------------------------------------------------------------------


def stop_in_order(server: Server, *names: str) -> list[Action]:
    """Each child ends when it is told, and the next one is told. Returns the actions after the last one's end."""
    for name, following in itertools.pairwise(names):
        assert server.dies(name, "exited with code 0") == [Send(following, Stop())]
    return server.dies(names[-1], "exited with code 0")


def test_draining_ends_when_the_front_says_so() -> None:
    server = running()
    assert server.says("http", Drained()) == []  # the server is not draining
    assert server.take(server.machine.drain()) == [Send("http", Health(True, "", True))]
    assert [timer.seconds for timer in server.timers] == [SETTINGS.drain_timeout]
    assert server.state is State.RUNNING
    assert server.says("http", Drained()) == [Send("http", Stop())]
    assert stop_in_order(server, *START_ORDER[::-1]) == [Exit(EXIT_OK)]
    assert server.log[1:] == ["draining: running requests have 30 s", "drained", "stopped"]


def test_the_drain_timeout_begins_after_the_delay() -> None:
    server = running(settings=replace(SETTINGS, drain_delay=10.0))
    server.take(server.machine.drain())
    assert [timer.seconds for timer in server.timers] == [10.0 + SETTINGS.drain_timeout]


def test_draining_for_too_long() -> None:
    server = running()
    server.take(server.machine.drain())
    assert server.take(server.machine.drain_overdue()) == [Send("http", Stop())]
    told = server.log[1:]
    assert told == ["draining: running requests have 30 s", "drain timeout: stopping with requests running"]
    assert server.take(server.machine.drain_overdue()) == []
    assert server.log[1:] == told


def test_a_second_signal_stops_at_once() -> None:
    server = running()
    server.machine.drain()
    assert server.take(server.machine.drain()) == [Send("http", Stop())]
    assert server.take(server.machine.drain()) == []
    assert stop_in_order(server, *START_ORDER[::-1]) == [Exit(EXIT_OK)]


def test_a_death_while_draining_is_repaired() -> None:
    """Running requests go on, and Health still tells the front that the server drains."""
    server = running()
    server.machine.drain()
    assert Send("http", Health(False, f"tokenizer {DIES} and is being replaced", True)) in server.dies("tokenizer")
    assert server.state is State.REPAIRING
    server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http")
    assert server.says("tokenizer", Ready(Facts()))[-1] == Send("http", Health(True, "", True))
    assert server.says("http", Drained()) == [Send("http", Stop())]


def test_a_signal_during_a_repair_drains() -> None:
    server = running()
    server.dies("tokenizer")
    assert server.take(server.machine.drain()) == [Send("http", Health(False, "", True))]
    server.machine.drain()
    assert server.dies("http") == [Kill("tokenizer")]  # the tokenizer was not ready
    assert server.dies("tokenizer") == [Send("detokenizer", Stop())]


def test_the_first_stop_decides() -> None:
    server = running()
    server.take(server.machine.stop(EXIT_GAVE_UP, "the front failed"))
    assert server.take(server.machine.stop()) == []
    assert server.says("router", Failed("late")) == []
    assert stop_in_order(server, *START_ORDER[::-1]) == [Exit(EXIT_GAVE_UP)]
    assert server.machine.reason == "the front failed"
    assert server.log[-1] == "the front failed"  # the last line gives the reason


def test_a_stop_before_the_start() -> None:
    server = Server()
    assert server.take(server.machine.stop()) == [Exit(EXIT_OK)]
    assert server.machine.start() == []


def test_a_child_that_does_not_stop_is_killed() -> None:
    server = running()
    server.take(server.machine.stop())
    assert [timer.seconds for timer in server.timers] == [STOP_GRACE]
    assert server.expire() == [Kill("http")]
    assert server.log[-1] == "http did not stop in time: killed"
    assert server.dies("http") == [Send("tokenizer", Stop())]


def test_a_child_that_is_gone_in_time_is_not_killed_later() -> None:
    server = running()
    server.take(server.machine.stop())
    timers = server.timers
    server.dies("http")
    server.timers = timers
    assert server.expire() == []


def test_deaths_before_their_turn() -> None:
    """No child is restarted, and a child that is gone gets no Stop."""
    server = running()
    server.take(server.machine.stop())
    assert (server.dies("tokenizer"), server.timers) == ([], [])
    assert (server.dies("worker0"), server.timers) == ([], [])
    assert server.dies("http") == [Send("detokenizer", Stop())]
    assert server.dies("detokenizer") == [Send("router", Stop())]
    assert server.dies("router") == [Send("guide", Stop())]
    assert server.dies("guide") == [Exit(EXIT_OK)]


def test_a_late_ready_is_told_to_stop_and_a_late_reset_done_begins_nothing() -> None:
    server = running()
    server.dies("tokenizer")
    server.machine.stop()
    assert server.says("tokenizer", Ready(Facts())) == []
    assert server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http") == []
    assert server.dies("http") == [Send("tokenizer", Stop())]


def test_ranks_stop_together() -> None:
    server = running(ranks=2)
    server.machine.stop()
    for name in ("http", "tokenizer", "detokenizer", "router"):
        server.dies(name)
    assert server.dies("guide") == [Send("worker0", Stop()), Send("worker1", Stop())]
    assert server.dies("worker1") == []
    assert [timer.seconds for timer in server.timers] == [STOP_GRACE]  # for worker0, which got Stop
    assert server.dies("worker0") == [Exit(EXIT_OK)]


def test_a_child_that_hangs_is_left_to_its_executioner() -> None:
    """It first gets time to report where it hangs: neither Stop nor another kill before the grace period ends."""
    server = running()
    server.ticks(0.0)
    server.all_say(Pong(1), *(name for name in START_ORDER if name != "http"))
    server.ticks(10.5)
    assert server.take(server.machine.stop()) == []
    assert server.expire() == [Kill("http")]
    assert server.dies("http") == [Send("tokenizer", Stop())]


def test_other_messages_are_ignored() -> None:
    assert running().says("router", Stop()) == []


def test_levels_of_log_lines() -> None:
    machine = running().machine
    assert machine.exited("router", DIES, 1.0)[0] == Log(logging.WARNING, f"router {DIES}")
    assert machine.stop(EXIT_GAVE_UP, "the front failed")[0] == Log(logging.ERROR, "the front failed")
