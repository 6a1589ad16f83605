"""A server for tests of the state machine: it simulates children, clock and timers without a process."""

from __future__ import annotations

from lightllm_mp.actors.supervision.actions import (
    Action,
    After,
    Log,
    Send,
    Spawn,
)
from lightllm_mp.actors.supervision.state_machine import (
    State,
    StateMachine,
)
from lightllm_mp.actors.topology import HTTP, ImageArenas, topology
from lightllm_mp.config import SupervisorConfig
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Begin, Health, Ready, Reset, ResetDone, Wire

SETTINGS = SupervisorConfig(
    max_restarts=3, restart_window=100.0, watchdog_timeout=10.0, start_timeout=60.0, drain_timeout=30.0
)
START_ORDER = ("worker0", "guide", "router", "detokenizer", "tokenizer", "http")
DIES = "was killed by SIGKILL"


class Server:
    """A state machine, and simulated processes, lanes and clock."""

    def __init__(
        self, *, ranks: int = 1, front: str = HTTP, images: bool = False, settings: SupervisorConfig = SETTINGS
    ) -> None:
        arenas = ImageArenas(cache=1 << 16, files=1 << 16) if images else None
        self.plan = topology(ranks=ranks, front=front, images=arenas)
        self.machine = StateMachine(self.plan, settings, now=0.0)
        self.now = 0.0
        self.log: list[str] = []

    def take(self, actions: list[Action]) -> list[Action]:
        """The actions without log lines and timers. The server keeps those."""
        self.log += [action.text for action in actions if isinstance(action, Log)]
        self.timers = [action for action in actions if isinstance(action, After)]
        return [action for action in actions if not isinstance(action, Log | After)]

    def says(self, name: str, message: Wire) -> list[Action]:
        return self.take(self.machine.received(name, message, self.now))

    def dies(self, name: str, reason: str = DIES) -> list[Action]:
        return self.take(self.machine.exited(name, reason, self.now))

    def ticks(self, seconds: float) -> list[Action]:
        """Tick `seconds` later."""
        self.now += seconds
        return self.take(self.machine.tick(self.now))

    def expire(self) -> list[Action]:
        """Let the timer of the last event expire."""
        (timer,) = self.timers
        self.now += timer.seconds
        return self.take(timer.event(*timer.args))

    def all_say(self, message: Wire, *names: str) -> list[Action]:
        """The actions after the last child's message. The messages of the others must cause none."""
        for name in names[:-1]:
            assert self.says(name, message) == []
        return self.says(names[-1], message)

    @property
    def state(self) -> State:
        return self.machine.state


def started(**shape: object) -> Server:
    server = Server(**shape)  # type: ignore[arg-type]
    server.take(server.machine.start())
    return server


def running(**shape: object) -> Server:
    server = started(**shape)
    server.all_say(Ready(Facts()), *server.plan.actors)
    assert server.state is State.RUNNING
    return server


def begins(server: Server, *names: str, restarted: tuple[str, ...] = ()) -> list[Action]:
    """The actions with which an epoch begins for these children."""
    begin = Begin(server.machine.epoch, server.machine.facts, restarted)
    return [*(Send(name, begin) for name in names), Send(server.plan.front, Health(True))]


def resets(epoch: int, *names: str) -> list[Action]:
    return [Send(name, Reset(epoch)) for name in names]


def replaced(*names: str) -> list[Action]:
    return [Spawn(names, replace=True)]


def trouble(name: str, reason: str = DIES) -> Action:
    return Send(HTTP, Health(False, f"{name} {reason} and is being replaced"))


def recovers(server: Server, name: str) -> list[Action]:
    """A replacement is ready, and the next epoch begins."""
    epoch = server.machine.epoch
    survivors = [other for other in server.plan.actors if other != name and server.machine.children[other].ready]
    for other in survivors:
        server.says(other, ResetDone(epoch))
    actions = server.says(name, Ready(Facts()))
    assert server.state is State.RUNNING
    return actions
