"""The supervisor's state machine, without a process: deaths and repairs, at unusual moments too."""

from __future__ import annotations

from lightllm_mp.actors.supervision.actions import (
    CompareRanks,
    Kill,
    ResetData,
    Send,
    Serving,
)
from lightllm_mp.actors.supervision.restart_budget import FIRST_PAUSE
from lightllm_mp.actors.supervision.state_machine import (
    State,
)
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Begin, Ping, Pong, Ready, ResetDone
from tests.actors.supervision.fake_server import (
    SETTINGS,
    START_ORDER,
    begins,
    replaced,
    resets,
    running,
    started,
    trouble,
)

# --- RUNNING and REPAIRING --------------------------------------------------------------------------------------------


def test_a_death_and_its_repair() -> None:
    server = running()
    survivors = ("worker0", "guide", "router", "detokenizer", "http")
    assert server.dies("tokenizer") == [*resets(2, *survivors), trouble("tokenizer"), *replaced("tokenizer")]
    assert server.timers == []
    assert (server.state, server.machine.epoch) == (State.REPAIRING, 2)
    assert server.all_say(ResetDone(2), *survivors) == []
    server.now = 2.5
    server.log.clear()
    again = server.says("tokenizer", Ready(Facts()))
    assert again == [ResetData(2), *begins(server, *START_ORDER, restarted=("tokenizer",))]
    assert (server.state, server.log) == (State.RUNNING, ["epoch 2: serving again after 2.50 s"])
    assert {name: child.restarts for name, child in server.machine.children.items() if child.restarts} == {
        "tokenizer": 1
    }


def test_a_survivor_that_answers_last() -> None:
    server = running()
    server.dies("tokenizer")
    assert server.says("tokenizer", Ready(Facts())) == []
    assert server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http")[0] == ResetData(2)


def test_a_second_death_during_the_repair() -> None:
    """It owes no answer any more, and Begin names both as restarted."""
    server = running()
    server.dies("tokenizer")
    assert server.dies("detokenizer") == [trouble("detokenizer"), *replaced("detokenizer")]
    assert server.machine.epoch == 2
    assert server.all_say(ResetDone(2), "worker0", "guide", "router", "http") == []
    last = server.all_say(Ready(Facts()), "tokenizer", "detokenizer")
    assert last == [ResetData(2), *begins(server, *START_ORDER, restarted=("detokenizer", "tokenizer"))]


def test_the_new_process_dies_before_it_is_ready() -> None:
    server = running()
    server.dies("tokenizer")
    assert server.dies("tokenizer") == [trouble("tokenizer")]
    assert [timer.seconds for timer in server.timers] == [FIRST_PAUSE]
    assert server.expire() == replaced("tokenizer")
    server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http")
    assert server.says("tokenizer", Ready(Facts()))[0] == ResetData(2)


def test_a_survivor_that_answered_dies_afterwards() -> None:
    server = running()
    server.dies("tokenizer")
    server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http")
    server.dies("router")
    assert server.says("tokenizer", Ready(Facts())) == []
    assert server.says("router", Ready(Facts()))[0] == ResetData(2)


def test_an_answer_to_an_earlier_reset_does_not_count() -> None:
    server = running()
    server.dies("tokenizer")
    server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http")
    server.says("tokenizer", Ready(Facts()))
    server.dies("tokenizer")
    server.says("tokenizer", Ready(Facts()))
    assert server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http") == []
    assert server.all_say(ResetDone(3), "worker0", "guide", "router", "detokenizer", "http")[0] == ResetData(3)


def test_a_ready_that_comes_with_the_news_of_the_death() -> None:
    """The process that sent Ready is gone, so it is not ready."""
    server = running()
    server.dies("tokenizer")
    server.says("tokenizer", Ready(Facts()))
    server.dies("tokenizer")
    assert server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http") == []
    assert server.says("tokenizer", Ready(Facts()))[0] == ResetData(2)


def test_a_repair_that_takes_too_long_is_a_failed_start() -> None:
    """So is a survivor that does not leave its lanes. Both are tried again."""
    server = running()
    server.dies("tokenizer")
    survivors = ("worker0", "guide", "router", "detokenizer", "http")
    server.all_say(ResetDone(2), "worker0", "guide", "detokenizer", "http")
    server.ticks(0.0)
    server.all_say(Pong(2), *survivors)
    assert Kill("router", 60.0) not in server.ticks(60.0)
    server.all_say(Pong(2), *survivors)
    assert server.ticks(0.1)[:2] == [Kill("router", 60.0), Kill("tokenizer", 60.0)]
    server.all_say(Pong(2), *survivors)
    assert not [action for action in server.ticks(0.1) if isinstance(action, Kill)]  # they are killed only once
    assert server.dies("router") == [trouble("router"), *replaced("router")]
    assert server.dies("tokenizer") == [trouble("tokenizer")]
    assert server.expire() == replaced("tokenizer")
    server.all_say(Pong(2), "worker0", "guide", "detokenizer", "http")
    assert not [action for action in server.ticks(59.0) if isinstance(action, Kill)]  # their time starts anew
    assert server.all_say(Ready(Facts()), "router", "tokenizer")[0] == ResetData(2)


def test_the_time_of_a_repair_ends_with_it() -> None:
    server = running()
    server.dies("tokenizer")
    server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "http")
    server.says("tokenizer", Ready(Facts()))
    server.ticks(0.0)
    server.all_say(Pong(2), *START_ORDER)
    assert server.ticks(10 * SETTINGS.start_timeout) == [Send(name, Ping(2)) for name in START_ORDER]


# --- a dispensable child ----------------------------------------------------------------------------------------------


def test_the_others_begin_without_a_dispensable_child() -> None:
    server = running(images=True)
    others = ("worker0", "guide", "router", "detokenizer", "tokenizer", "http")
    everybody = ("worker0", "guide", "router", "detokenizer", "tokenizer", "visual", "http")
    assert server.dies("visual") == [*resets(2, *others), trouble("visual"), *replaced("visual")]
    last = server.all_say(ResetDone(2), *others)
    assert last == [ResetData(2), *begins(server, *others, restarted=("visual",))]
    # Its next death, before it is ready, ends no epoch.
    assert server.dies("visual") == []
    assert server.expire() == replaced("visual")
    assert server.state is State.RUNNING
    # When it is ready, the epoch ends, and the next one has all children.
    assert server.says("visual", Ready(Facts())) == resets(3, *everybody)
    assert server.state is State.REPAIRING
    assert server.all_say(ResetDone(3), *everybody) == [ResetData(3), *begins(server, *everybody)]


def test_the_first_epoch_waits_for_a_dispensable_child() -> None:
    server = started(images=True)
    assert server.all_say(Ready(Facts()), *START_ORDER) == []
    assert server.says("visual", Ready(Facts()))[-1] == Serving(Facts())


def test_a_dispensable_child_is_ready_during_a_repair() -> None:
    server = running(images=True)
    server.dies("visual")
    server.all_say(ResetDone(2), "worker0", "guide", "router", "detokenizer", "tokenizer", "http")
    server.dies("tokenizer")
    assert server.says("visual", Ready(Facts())) == []
    server.all_say(ResetDone(3), "worker0", "guide", "router", "detokenizer", "http")
    last = server.says("tokenizer", Ready(Facts()))
    assert Send("visual", Begin(3, Facts(), ("tokenizer",))) in last


# --- ranks ------------------------------------------------------------------------------------------------------------

BOTH = ("worker0", "worker1")


def test_a_rank_takes_the_others_along() -> None:
    """All ranks start again when the last of them is gone, and only one restart is counted."""
    server = running(ranks=2)
    survivors = ("guide", "router", "detokenizer", "tokenizer", "http")
    assert server.dies("worker1") == [*resets(2, *survivors), Kill("worker0"), trouble("worker1")]
    assert server.dies("worker0") == replaced(*BOTH)
    assert server.all_say(ResetDone(2), *survivors) == []
    last = server.all_say(Ready(Facts()), *BOTH)
    assert last == [ResetData(2), *begins(server, *BOTH, *survivors, restarted=BOTH)]
    assert sum(child.restarts for child in server.machine.children.values()) == 1


def test_ranks_are_reset_after_the_router_has_left() -> None:
    server = running(ranks=2)
    assert server.dies("tokenizer")[:4] == resets(2, "guide", "router", "detokenizer", "http")
    assert server.says("detokenizer", ResetDone(2)) == []
    assert server.says("router", ResetDone(2)) == [CompareRanks()]
    assert server.take(server.machine.ranks_compared(False, server.now)) == resets(2, *BOTH)
    server.all_say(ResetDone(2), *BOTH, "guide", "http")
    assert server.says("tokenizer", Ready(Facts()))[0] == ResetData(2)


def test_a_router_that_dies_has_left_too() -> None:
    server = running(ranks=2)
    survivors = ("guide", "detokenizer", "tokenizer", "http")
    assert server.dies("router") == [*resets(2, *survivors), trouble("router"), CompareRanks(), *replaced("router")]
    assert server.take(server.machine.ranks_compared(False, server.now)) == resets(2, *BOTH)


def test_ranks_of_which_not_all_got_the_last_plan_are_replaced() -> None:
    server = running(ranks=2)
    server.dies("router")
    why = "waits for a step that not every rank got"
    assert server.take(server.machine.ranks_compared(True, server.now)) == [*map(Kill, BOTH), trouble("worker0", why)]
    # No epoch begins while the ranks are being killed, and they are killed only once.
    assert server.all_say(ResetDone(2), "guide", "detokenizer", "tokenizer", "http") == []
    assert server.says("router", Ready(Facts())) == []
    assert server.dies("router") == [trouble("router"), *replaced("router")]
    assert server.take(server.machine.ranks_compared(True, server.now)) == []
    assert server.dies("worker0") == []
    assert server.dies("worker1") == replaced(*BOTH)
    last = server.all_say(Ready(Facts()), "router", *BOTH)
    assert last[1] == Send("worker0", Begin(2, Facts(), (*BOTH, "router")))
    assert [server.machine.children[name].restarts for name in (*BOTH, "router")] == [0, 0, 2]


def test_the_router_dies_after_a_rank() -> None:
    """The ranks are being replaced anyway, so it does not matter which plans they got."""
    server = running(ranks=2)
    server.dies("worker0")
    assert server.dies("router") == [trouble("router"), *replaced("router")]
    assert server.take(server.machine.ranks_compared(True, server.now)) == []


def test_a_rank_dies_while_the_ranks_are_being_replaced() -> None:
    server = running(ranks=2)
    server.dies("worker1")
    server.dies("worker0")
    assert server.says("worker1", Ready(Facts())) == []
    assert server.dies("worker0") == [Kill("worker1"), trouble("worker0")]
    # Ready of a rank that is being killed, and the news of its death: neither the rank nor its successor is ready.
    assert server.says("worker1", Ready(Facts())) == []
    assert server.dies("worker1") == []
    assert server.expire() == replaced(*BOTH)
    server.all_say(ResetDone(2), "guide", "router", "detokenizer", "tokenizer", "http")
    assert server.says("worker0", Ready(Facts())) == []
    assert server.says("worker1", Ready(Facts()))[0] == ResetData(2)
