"""The table of a server's life, without a process: deaths and repairs, at odd moments too."""

from __future__ import annotations

from lightllm_mp.actors.supervision.actions import (
    Action,
    CompareRanks,
    Exit,
    Kill,
    ResetData,
    Send,
    Serving,
)
from lightllm_mp.actors.supervision.restart_budget import FIRST_PAUSE, LONGEST_PAUSE, pause_after
from lightllm_mp.actors.supervision.state_machine import (
    EXIT_GAVE_UP,
    EXIT_START_FAILED,
    MOST_REFUSALS,
    State,
)
from lightllm_mp.messages import (
    Begin,
    Blamed,
    Facts,
    Failed,
    Health,
    Ping,
    Pong,
    Ready,
    Reset,
    ResetDone,
    Stop,
)
from tests.actors.supervision.fake_server import (
    DIES,
    SETTINGS,
    START_ORDER,
    Server,
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
    survivors = ("worker0", "router", "detokenizer", "http")
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
    assert server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http")[0] == ResetData(2)


def test_a_second_death_during_the_repair() -> None:
    """It owes no answer any more, and both are told as restarted."""
    server = running()
    server.dies("tokenizer")
    assert server.dies("detokenizer") == [trouble("detokenizer"), *replaced("detokenizer")]
    assert server.machine.epoch == 2
    assert server.all_say(ResetDone(2), "worker0", "router", "http") == []
    last = server.all_say(Ready(Facts()), "tokenizer", "detokenizer")
    assert last == [ResetData(2), *begins(server, *START_ORDER, restarted=("detokenizer", "tokenizer"))]


def test_the_new_process_dies_before_it_is_ready() -> None:
    server = running()
    server.dies("tokenizer")
    assert server.dies("tokenizer") == [trouble("tokenizer")]
    assert [timer.seconds for timer in server.timers] == [FIRST_PAUSE]
    assert server.expire() == replaced("tokenizer")
    server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http")
    assert server.says("tokenizer", Ready(Facts()))[0] == ResetData(2)


def test_a_survivor_that_answered_dies_afterwards() -> None:
    server = running()
    server.dies("tokenizer")
    server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http")
    server.dies("router")
    assert server.says("tokenizer", Ready(Facts())) == []
    assert server.says("router", Ready(Facts()))[0] == ResetData(2)


def test_an_answer_to_an_earlier_reset_does_not_count() -> None:
    server = running()
    server.dies("tokenizer")
    server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http")
    server.says("tokenizer", Ready(Facts()))
    server.dies("tokenizer")
    server.says("tokenizer", Ready(Facts()))
    assert server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http") == []
    assert server.all_say(ResetDone(3), "worker0", "router", "detokenizer", "http")[0] == ResetData(3)


def test_a_ready_that_comes_with_the_news_of_the_death() -> None:
    """Its last words: the process that said it is gone, so it is not ready."""
    server = running()
    server.dies("tokenizer")
    server.says("tokenizer", Ready(Facts()))
    server.dies("tokenizer")
    assert server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http") == []
    assert server.says("tokenizer", Ready(Facts()))[0] == ResetData(2)


def test_a_repair_that_takes_too_long_is_a_failed_start() -> None:
    """A survivor that does not leave its lanes too; both are tried again."""
    server = running()
    server.dies("tokenizer")
    survivors = ("worker0", "router", "detokenizer", "http")
    server.all_say(ResetDone(2), "worker0", "detokenizer", "http")
    server.ticks(0.0)
    server.all_say(Pong(2), *survivors)
    assert Kill("router", 60.0) not in server.ticks(60.0)
    server.all_say(Pong(2), *survivors)
    assert server.ticks(0.1)[:2] == [Kill("router", 60.0), Kill("tokenizer", 60.0)]
    server.all_say(Pong(2), *survivors)
    assert not [action for action in server.ticks(0.1) if isinstance(action, Kill)]  # once
    assert server.dies("router") == [trouble("router"), *replaced("router")]
    assert server.dies("tokenizer") == [trouble("tokenizer")]
    assert server.expire() == replaced("tokenizer")
    server.all_say(Pong(2), "worker0", "detokenizer", "http")
    assert not [action for action in server.ticks(59.0) if isinstance(action, Kill)]  # their time begins anew
    assert server.all_say(Ready(Facts()), "router", "tokenizer")[0] == ResetData(2)


def test_the_time_of_a_repair_ends_with_it() -> None:
    server = running()
    server.dies("tokenizer")
    server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "http")
    server.says("tokenizer", Ready(Facts()))
    server.ticks(0.0)
    server.all_say(Pong(2), *START_ORDER)
    assert server.ticks(10 * SETTINGS.start_timeout) == [Send(name, Ping(2)) for name in START_ORDER]


def test_a_death_at_every_start_spends_the_budget() -> None:
    server = running()
    assert server.dies("tokenizer")[-1:] == replaced("tokenizer")
    pauses = []
    for _ in range(SETTINGS.max_restarts - 1):
        server.dies("tokenizer", "exited with code 3")
        pauses += [timer.seconds for timer in server.timers]
        assert server.expire() == replaced("tokenizer")
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert server.dies("tokenizer", "exited with code 3") == [Send("http", Stop())]
    assert server.machine.reason == "giving up: tokenizer exited with code 3, and the restart budget is spent"
    for name in ("http", "detokenizer", "router"):
        server.dies(name, "exited with code 0")
    assert server.dies("worker0", "exited with code 0") == [Exit(EXIT_GAVE_UP)]
    assert server.log.count("tokenizer exited with code 3") == SETTINGS.max_restarts
    assert server.log[-1] == server.machine.reason


def test_starts_that_fail_slowly_spend_the_budget_too() -> None:
    """Each takes longer than the window."""
    server = running()
    server.dies("worker0")
    for _ in range(SETTINGS.max_restarts):
        server.now += 2 * SETTINGS.restart_window
        server.dies("worker0", "exited with code 3")
        assert server.expire() == replaced("worker0")
    server.now += 2 * SETTINGS.restart_window
    assert server.dies("worker0", "exited with code 3") == [Send("http", Stop())]


def recovers(server: Server, name: str) -> list[Action]:
    """Its replacement is ready, and the next epoch begins."""
    epoch = server.machine.epoch
    survivors = [other for other in server.plan.actors if other != name and server.machine.children[other].ready]
    for other in survivors:
        server.says(other, ResetDone(epoch))
    actions = server.says(name, Ready(Facts()))
    assert server.state is State.RUNNING
    return actions


def test_the_budget_is_one_of_a_window() -> None:
    server = running()
    for _ in range(3 * SETTINGS.max_restarts):
        server.now += SETTINGS.restart_window / 2
        assert server.dies("tokenizer")[-1:] == replaced("tokenizer")
        recovers(server, "tokenizer")


def test_every_process_has_a_budget_of_its_own() -> None:
    server = running()
    for _ in range(SETTINGS.max_restarts):
        for name in ("tokenizer", "worker0", "router"):
            assert server.dies(name)[-1:] == replaced(name)
            recovers(server, name)
    server.dies("router")
    assert server.machine.reason == f"giving up: router {DIES}, and the restart budget is spent"


def test_a_replacement_that_cannot_start_is_tried_again() -> None:
    """What it needs may be freed a moment later: the memory of the dead process on a GPU, for one."""
    server = running()
    server.dies("worker0")
    for pause in (FIRST_PAUSE, 2 * FIRST_PAUSE):
        assert server.says("worker0", Failed("CUDA out of memory")) == [Kill("worker0")]
        told = server.dies("worker0")
        assert told == [trouble("worker0", "cannot start: CUDA out of memory")]
        assert [timer.seconds for timer in server.timers] == [pause]
        assert server.expire() == replaced("worker0")
    assert recovers(server, "worker0")[0] == ResetData(2)


def test_a_replacement_that_never_can_start_ends_the_server() -> None:
    server = running()
    server.dies("worker0")
    for _ in range(SETTINGS.max_restarts):
        server.says("worker0", Failed("out of memory"))
        server.dies("worker0", "exited with code 1")
        if server.state is State.REPAIRING:
            server.expire()
    reason = "giving up: worker0 cannot start: out of memory, and the restart budget is spent"
    assert (server.state, server.machine.reason) == (State.STOPPING, reason)
    for name in ("http", "tokenizer", "detokenizer"):
        server.dies(name)
    assert server.dies("router") == [Exit(EXIT_GAVE_UP)]


def test_who_was_ready_for_a_window_is_forgiven() -> None:
    server = running()
    server.dies("worker0")
    for _ in range(3):
        server.dies("worker0", "exited with code 3")
        assert [timer.seconds for timer in server.timers] == [FIRST_PAUSE]
        server.expire()
        recovers(server, "worker0")
        server.now += 2 * SETTINGS.restart_window
        assert server.dies("worker0")[-1:] == replaced("worker0")


def test_a_pause_ends_with_the_server() -> None:
    server = running()
    server.dies("tokenizer")
    server.dies("tokenizer")
    timers = server.timers
    server.machine.stop()
    server.timers = timers
    assert server.expire() == []


# --- starts that the system refuses -----------------------------------------------------------------------------------

EAGAIN = "Resource temporarily unavailable"


def refused(server: Server, *names: str) -> list[Action]:
    return server.take(server.machine.refused(names, EAGAIN, server.now))


def test_a_refused_start_is_tried_again() -> None:
    """As after a kill for memory, or at a limit of processes or descriptors: it costs no budget at first."""
    server = running()
    server.dies("tokenizer")
    for failures in range(1, MOST_REFUSALS + 1):
        assert refused(server, "tokenizer") == []
        assert [timer.seconds for timer in server.timers] == [pause_after(failures)]
        assert server.log[-1] == f"tokenizer cannot be started: {EAGAIN}"
        assert server.expire() == replaced("tokenizer")
    assert recovers(server, "tokenizer")[0] == ResetData(2)
    assert server.machine.children["tokenizer"].restarts == 1
    for _ in range(SETTINGS.max_restarts - 1):
        assert server.dies("tokenizer")[-1:] == replaced("tokenizer")
        recovers(server, "tokenizer")


def test_a_start_that_is_refused_again_and_again_is_a_failed_start() -> None:
    server = running()
    server.dies("tokenizer")
    rounds = 0
    while server.state is State.REPAIRING:
        rounds += 1
        for _ in range(MOST_REFUSALS + 1):
            refused(server, "tokenizer")
            if server.state is State.REPAIRING:
                assert server.expire() == replaced("tokenizer")
    assert rounds == SETTINGS.max_restarts
    why = f"cannot be started: {EAGAIN}"
    assert server.machine.reason == f"giving up: tokenizer {why}, and the restart budget is spent"


def test_a_refused_start_at_first_fails_the_start() -> None:
    server = started()
    assert refused(server, *START_ORDER) == [Kill("http"), Exit(EXIT_START_FAILED)]
    assert server.machine.reason == f"start failed: worker0 cannot be started: {EAGAIN}"


def test_one_rank_that_is_refused_is_tried_alone() -> None:
    server = running(ranks=2)
    server.dies("worker1")
    assert server.dies("worker0") == replaced(*BOTH)
    assert refused(server, "worker1") == []
    assert server.expire() == replaced("worker1")


def test_a_refused_rank_whose_sibling_dies_meanwhile_is_started_with_it() -> None:
    server = running(ranks=2)
    server.dies("worker1")
    server.dies("worker0")
    refused(server, "worker1")
    (alone,) = server.timers
    assert server.dies("worker0") == [trouble("worker0")]
    (together,) = server.timers
    assert server.take(alone.event(*alone.args)) == []
    assert server.take(together.event(*together.args)) == replaced(*BOTH)
    assert server.take(alone.event(*alone.args)) == []


def test_refused_ranks_are_charged_once() -> None:
    server = running(ranks=2)
    server.dies("worker1")
    server.dies("worker0")
    for _ in range(MOST_REFUSALS):
        refused(server, *BOTH)
        assert server.expire() == replaced(*BOTH)
    refused(server, *BOTH)
    assert [timer.seconds for timer in server.timers] == [FIRST_PAUSE]
    assert server.expire() == replaced(*BOTH)
    assert sum(child.restarts for child in server.machine.children.values()) == 2


# --- deaths that a request is to blame for ----------------------------------------------------------------------------


def test_deaths_of_a_harmful_request_are_not_charged() -> None:
    """One such request after another, each with three deaths as in front/quarantine.py."""
    server = running()
    for _ in range(10):
        epochs = []
        for death in range(3):
            assert server.dies("worker0")[-1:] == replaced("worker0")
            epochs.append(server.machine.epoch)
            recovers(server, "worker0")
            if death:
                for epoch in epochs:
                    assert server.says("http", Blamed("worker0", epoch)) == []
    assert server.machine.children["worker0"].restarts == 30
    assert server.state is State.RUNNING


def test_a_crash_loop_without_requests_ends_the_server() -> None:
    server = running()
    for _ in range(SETTINGS.max_restarts):
        server.dies("worker0")
        recovers(server, "worker0")
    assert server.dies("worker0") == [Send("http", Stop())]


def test_only_the_named_death_of_the_named_process_is_excused() -> None:
    server = running()
    for name in ("worker0", "tokenizer", "worker0", "worker0"):
        server.dies(name)
        recovers(server, name)
    server.says("http", Blamed("worker0", 3))  # the tokenizer's
    server.says("http", Blamed("tokenizer", 2))
    server.says("router", Blamed("worker0", 2))  # it is not the front
    server.says("http", Blamed("nobody", 2))
    assert server.dies("worker0") == [Send("http", Stop())]


def test_a_failed_start_is_nobodys_fault() -> None:
    """Requests have not reached the process."""
    server = running()
    for _ in range(SETTINGS.max_restarts + 1):
        server.dies("worker0")
        timers = server.timers
        server.says("http", Blamed("worker0", 2))
        server.timers = timers
        if timers:
            server.expire()
    assert server.dies("worker0") == [Send("http", Stop())]


def test_the_front_excuses_no_death_of_its_own() -> None:
    server = running()
    for _ in range(SETTINGS.max_restarts):
        server.dies("http")
        recovers(server, "http")
        server.says("http", Blamed("http", server.machine.epoch))
    server.dies("http")
    assert server.state is State.STOPPING


def test_ranks_share_a_budget() -> None:
    server = running(ranks=2)
    for first, second in (BOTH, BOTH[::-1], BOTH):
        server.dies(first)
        assert server.dies(second) == replaced(*BOTH)
        server.all_say(ResetDone(server.machine.epoch), "router", "detokenizer", "tokenizer", "http")
        server.all_say(Ready(Facts()), *BOTH)
    server.says("http", Blamed("worker0", 2))
    server.says("http", Blamed("worker1", 2))
    assert server.dies("worker1")[-1] == trouble("worker1")
    server.dies("worker0")
    server.all_say(ResetDone(server.machine.epoch), "router", "detokenizer", "tokenizer", "http")
    server.all_say(Ready(Facts()), *BOTH)
    server.dies("worker0")
    assert server.state is State.STOPPING


# --- a dispensable child ----------------------------------------------------------------------------------------------


def test_the_others_begin_without_a_dispensable_child() -> None:
    server = running(images=True)
    others = ("worker0", "router", "detokenizer", "tokenizer", "http")
    everybody = ("worker0", "router", "detokenizer", "tokenizer", "visual", "http")
    assert server.dies("visual") == [*resets(2, *others), trouble("visual"), *replaced("visual")]
    last = server.all_say(ResetDone(2), *others)
    assert last == [ResetData(2), *begins(server, *others, restarted=("visual",))]
    # Its next death, before it is ready, ends no epoch.
    assert server.dies("visual") == []
    assert server.expire() == replaced("visual")
    assert server.state is State.RUNNING
    # When it is ready, the epoch ends for one with everybody.
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
    server.all_say(ResetDone(2), "worker0", "router", "detokenizer", "tokenizer", "http")
    server.dies("tokenizer")
    assert server.says("visual", Ready(Facts())) == []
    server.all_say(ResetDone(3), "worker0", "router", "detokenizer", "http")
    last = server.says("tokenizer", Ready(Facts()))
    assert Send("visual", Begin(3, Facts(), ("tokenizer",))) in last


def test_a_dispensable_child_that_hangs_at_its_start_is_killed() -> None:
    server = running(images=True)
    others = ("worker0", "router", "detokenizer", "tokenizer", "http")
    server.dies("visual")
    server.all_say(ResetDone(2), *others)
    server.ticks(0.0)
    for _ in range(2):
        server.all_say(Pong(2), *others)
        assert server.ticks(60.1)[0] == Kill("visual", 60.0)
        assert server.dies("visual") == []
        assert server.expire() == replaced("visual")
    assert server.state is State.RUNNING


def test_a_dispensable_child_ends_no_server() -> None:
    """Its budget is its own. When that is spent, the front is told, and it is tried again with growing pauses."""
    server = running(images=True)
    others = ("worker0", "router", "detokenizer", "tokenizer", "http")
    server.dies("visual")
    server.all_say(ResetDone(2), *others)
    told, pauses = [], []
    for _ in range(12):
        told.append(server.dies("visual", "exited with code 3"))
        pauses += [timer.seconds for timer in server.timers]
        assert server.expire() == replaced("visual")
        assert server.state is State.RUNNING
    assert told == [[], [], [Send("http", Health(True, away=("visual",)))], *[[]] * 9]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[LONGEST_PAUSE] * 6]
    assert server.log.count("the restart budget of visual is spent: its requests are refused") == 10
    # The others have budgets of their own, and Health goes on to say who is away.
    for _ in range(SETTINGS.max_restarts):
        assert server.dies("router")[-1:] == replaced("router")
        assert recovers(server, "router")[-1] == Send("http", Health(True, away=("visual",)))
    # It comes back.
    assert server.says("visual", Ready(Facts()))[0] == Send("worker0", Reset(server.machine.epoch))
    last = server.all_say(ResetDone(server.machine.epoch), *others, "visual")
    assert last[-1] == Send("http", Health(True))


def test_a_dispensable_child_that_dies_again_and_again_at_its_work() -> None:
    server = running(images=True)
    others = ("worker0", "router", "detokenizer", "tokenizer", "http")
    pauses = []
    for _ in range(8):
        server.dies("visual")
        pauses.append(sum(timer.seconds for timer in server.timers))
        server.all_say(ResetDone(server.machine.epoch), *others)
        if server.timers:
            server.now = server.machine.children["visual"].budget.not_before
            server.take(server.machine.restart(("visual",), server.now))
        server.says("visual", Ready(Facts()))
        server.all_say(ResetDone(server.machine.epoch), *others, "visual")
        assert server.state is State.RUNNING
    assert pauses == [0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_dispensable_child_that_fails_at_the_first_start_fails_it() -> None:
    server = started(images=True)
    server.says("visual", Failed("no tower"))
    assert server.machine.reason == "visual cannot start: no tower"


# --- ranks ------------------------------------------------------------------------------------------------------------

BOTH = ("worker0", "worker1")


def test_a_rank_takes_the_others_along() -> None:
    """All start again when the last of them is gone, and only one restart is counted."""
    server = running(ranks=2)
    survivors = ("router", "detokenizer", "tokenizer", "http")
    assert server.dies("worker1") == [*resets(2, *survivors), Kill("worker0"), trouble("worker1")]
    assert server.dies("worker0") == replaced(*BOTH)
    assert server.all_say(ResetDone(2), *survivors) == []
    last = server.all_say(Ready(Facts()), *BOTH)
    assert last == [ResetData(2), *begins(server, *BOTH, *survivors, restarted=BOTH)]
    assert sum(child.restarts for child in server.machine.children.values()) == 1


def test_ranks_are_reset_after_the_router_has_left() -> None:
    server = running(ranks=2)
    assert server.dies("tokenizer")[:3] == resets(2, "router", "detokenizer", "http")
    assert server.says("detokenizer", ResetDone(2)) == []
    assert server.says("router", ResetDone(2)) == [CompareRanks()]
    assert server.take(server.machine.ranks_compared(False, server.now)) == resets(2, *BOTH)
    server.all_say(ResetDone(2), *BOTH, "http")
    assert server.says("tokenizer", Ready(Facts()))[0] == ResetData(2)


def test_a_router_that_dies_has_left_too() -> None:
    server = running(ranks=2)
    survivors = ("detokenizer", "tokenizer", "http")
    assert server.dies("router") == [*resets(2, *survivors), trouble("router"), CompareRanks(), *replaced("router")]
    assert server.take(server.machine.ranks_compared(False, server.now)) == resets(2, *BOTH)


def test_ranks_of_which_not_all_got_the_last_plan_are_replaced() -> None:
    server = running(ranks=2)
    server.dies("router")
    why = "waits for a step that not every rank got"
    assert server.take(server.machine.ranks_compared(True, server.now)) == [*map(Kill, BOTH), trouble("worker0", why)]
    # No epoch begins while they are being killed, and they are killed once.
    assert server.all_say(ResetDone(2), "detokenizer", "tokenizer", "http") == []
    assert server.says("router", Ready(Facts())) == []
    assert server.dies("router") == [trouble("router"), *replaced("router")]
    assert server.take(server.machine.ranks_compared(True, server.now)) == []
    assert server.dies("worker0") == []
    assert server.dies("worker1") == replaced(*BOTH)
    last = server.all_say(Ready(Facts()), "router", *BOTH)
    assert last[1] == Send("worker0", Begin(2, Facts(), (*BOTH, "router")))
    assert [server.machine.children[name].restarts for name in (*BOTH, "router")] == [0, 0, 2]


def test_the_router_dies_after_a_rank() -> None:
    """The ranks are being replaced anyway: what they got does not matter."""
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
    # Ready of a rank that is being killed, with the news of its death: neither it nor its successor is ready.
    assert server.says("worker1", Ready(Facts())) == []
    assert server.dies("worker1") == []
    assert server.expire() == replaced(*BOTH)
    server.all_say(ResetDone(2), "router", "detokenizer", "tokenizer", "http")
    assert server.says("worker0", Ready(Facts())) == []
    assert server.says("worker1", Ready(Facts()))[0] == ResetData(2)
