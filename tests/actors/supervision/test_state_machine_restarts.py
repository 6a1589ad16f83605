"""The supervisor's state machine, without a process: restart budgets, pauses, refused starts, harmful requests."""

from __future__ import annotations

from lightllm_mp.actors.supervision.actions import (
    Action,
    Exit,
    Kill,
    ResetData,
    Send,
)
from lightllm_mp.actors.supervision.restart_budget import FIRST_PAUSE, LONGEST_PAUSE, pause_after
from lightllm_mp.actors.supervision.state_machine import (
    EXIT_GAVE_UP,
    EXIT_START_FAILED,
    MOST_REFUSALS,
    State,
)
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Blamed, Failed, Health, Pong, Ready, Reset, ResetDone, Stop
from tests.actors.supervision.fake_server import (
    DIES,
    SETTINGS,
    START_ORDER,
    Server,
    recovers,
    replaced,
    running,
    started,
    trouble,
)

BOTH = ("worker0", "worker1")


# --- the budget and its pauses ----------------------------------------------------------------------------------------


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
    for name in ("http", "detokenizer", "router", "guide"):
        server.dies(name, "exited with code 0")
    assert server.dies("worker0", "exited with code 0") == [Exit(EXIT_GAVE_UP)]
    assert server.log.count("tokenizer exited with code 3") == SETTINGS.max_restarts
    assert server.log[-1] == server.machine.reason


def test_starts_that_fail_slowly_spend_the_budget_too() -> None:
    """Each start takes longer than the window."""
    server = running()
    server.dies("worker0")
    for _ in range(SETTINGS.max_restarts):
        server.now += 2 * SETTINGS.restart_window
        server.dies("worker0", "exited with code 3")
        assert server.expire() == replaced("worker0")
    server.now += 2 * SETTINGS.restart_window
    assert server.dies("worker0", "exited with code 3") == [Send("http", Stop())]


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
    """A resource that it needs may be freed a moment later, such as the memory of the dead process on a GPU."""
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
    for name in ("http", "tokenizer", "detokenizer", "router"):
        server.dies(name)
    assert server.dies("guide") == [Exit(EXIT_GAVE_UP)]


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
    """As after an out-of-memory kill, or at a limit of processes or descriptors: at first it costs no budget."""
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
    """Such requests come one after another, each with three deaths as in front/quarantine.py."""
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
    server.says("http", Blamed("worker0", 3))  # this epoch ended with the tokenizer's death
    server.says("http", Blamed("tokenizer", 2))
    server.says("router", Blamed("worker0", 2))  # the router is not the front
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


def test_a_front_excuses_the_deaths_of_those_before_it() -> None:
    """It has found the request that ended them in their journal."""
    server = running()
    for _ in range(5):
        epochs = []
        for _ in range(SETTINGS.max_restarts):
            server.dies("http")
            epochs.append(server.machine.epoch)
            recovers(server, "http")
        for epoch in epochs:
            server.says("http", Blamed("http", epoch))
    assert server.state is State.RUNNING
    for _ in range(SETTINGS.max_restarts):
        server.dies("http")
        recovers(server, "http")
    server.dies("http")
    assert server.state is State.STOPPING


def test_ranks_share_a_budget() -> None:
    server = running(ranks=2)
    for first, second in (BOTH, BOTH[::-1], BOTH):
        server.dies(first)
        assert server.dies(second) == replaced(*BOTH)
        server.all_say(ResetDone(server.machine.epoch), "guide", "router", "detokenizer", "tokenizer", "http")
        server.all_say(Ready(Facts()), *BOTH)
    server.says("http", Blamed("worker0", 2))
    server.says("http", Blamed("worker1", 2))
    assert server.dies("worker1")[-1] == trouble("worker1")
    server.dies("worker0")
    server.all_say(ResetDone(server.machine.epoch), "guide", "router", "detokenizer", "tokenizer", "http")
    server.all_say(Ready(Facts()), *BOTH)
    server.dies("worker0")
    assert server.state is State.STOPPING


# --- a dispensable child ----------------------------------------------------------------------------------------------


def test_a_dispensable_child_that_hangs_at_its_start_is_killed() -> None:
    server = running(images=True)
    others = ("worker0", "guide", "router", "detokenizer", "tokenizer", "http")
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
    """It has its own budget. Once that is spent, the front is told, and restarts go on with growing pauses."""
    server = running(images=True)
    others = ("worker0", "guide", "router", "detokenizer", "tokenizer", "http")
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
    # The others have budgets of their own, and Health still names the child that is away.
    for _ in range(SETTINGS.max_restarts):
        assert server.dies("router")[-1:] == replaced("router")
        assert recovers(server, "router")[-1] == Send("http", Health(True, away=("visual",)))
    # The child comes back.
    assert server.says("visual", Ready(Facts()))[0] == Send("worker0", Reset(server.machine.epoch))
    last = server.all_say(ResetDone(server.machine.epoch), *others, "visual")
    assert last[-1] == Send("http", Health(True))


def test_a_dispensable_child_that_dies_again_and_again_at_its_work() -> None:
    server = running(images=True)
    others = ("worker0", "guide", "router", "detokenizer", "tokenizer", "http")
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
