"""When a server starts, serves, repairs itself and stops: one table. Pure: events in, actions out; no I/O, no clock.

    state      event                                 next state  actions
    STARTING   the last Ready                        RUNNING     Begin to all actors, Serving
               a death, Failed, start timeout        STOPPING    exit code 69
               a signal                              STOPPING    exit code 0
    RUNNING    a death                               REPAIRING   Reset to the survivors, Spawn
               Ready of a dispensable child          REPAIRING   Reset to all; the next epoch begins with it
               a death outside the epoch             RUNNING     Spawn: only a dispensable child is outside
    REPAIRING  the last ResetDone and Ready          RUNNING     ResetData, Begin to all that are ready
               a death                               REPAIRING   Spawn; the dead child owes no ResetDone
               the router has left its lanes         REPAIRING   CompareRanks, then Reset to the ranks or Kill
    RUNNING,   a ping unanswered for half its limit  same        Health names the suspect; Pong clears it
    REPAIRING  a ping unanswered for its limit       same        Kill: its death is the next event
               Failed, start timeout                 same        Kill: its death is the next event, a failed start
               a failed start                        same        Spawn after a pause that grows
               a start that the system refuses       same        Spawn after a pause; the last time: a failed start
               a death, restart budget spent         STOPPING    exit code 70; not for a dispensable child
               Blamed                                same        the death counts no more
               a signal                              same        drain: Health(draining) to the front
               Drained, drain timeout, 2nd signal    STOPPING    exit code 0
    STOPPING   the awaited child is gone             STOPPING    Stop to the one that started before it
               grace period over                     STOPPING    Kill
               the last child is gone                -           Exit

A crash costs time, never a request. Survivors of a death get `Reset`: they leave the data lanes, drop request state and
keep what is expensive. When all survivors have answered and all new children are ready, the data lanes are emptied and
`Begin` opens the next epoch; the front submits again what it owes its clients. The next epoch does not wait for a
dispensable child; when that child is ready, the epoch ends for one with it. Every child has a restart budget of its own
(restart_budget.py). When that of a dispensable child is spent, Health tells the front that it is away, and its start is
tried again with growing pauses. A death that a request may be to blame for is charged to nobody: the front says so
(front/quarantine.py), so that a crash loop ends the server and a series of harmful requests does not.

Tensor-parallel ranks share one fate: a rank may wait for a dead one inside a step. When one dies the others are killed,
and all start again when the last of them is gone, so that old ranks hold no memory. Ranks get Reset after the router
has left its lanes: no further plan comes, so all of them finish the same last step. If the router died between two
sends, not every rank has that step, and all ranks are replaced.
"""

from __future__ import annotations

import enum
import logging

import msgspec

from lightllm_mp.actors.supervision.actions import (
    Action,
    After,
    CompareRanks,
    Exit,
    Kill,
    Log,
    Progress,
    ResetData,
    Send,
    Serving,
    Spawn,
)
from lightllm_mp.actors.supervision.child_state import ChildState
from lightllm_mp.actors.supervision.restart_budget import RestartBudget, pause_after
from lightllm_mp.actors.topology import ROUTER, Child, Topology
from lightllm_mp.config import SupervisorConfig
from lightllm_mp.facts import Facts
from lightllm_mp.messages import (
    Begin,
    Blamed,
    Drained,
    Failed,
    Health,
    Loading,
    Ping,
    Pong,
    Ready,
    Reset,
    ResetDone,
    Stop,
    Wire,
)

EXIT_OK, EXIT_START_FAILED, EXIT_GAVE_UP = 0, 69, 70
STOP_GRACE = 3.0
"""Seconds a child has to exit after Stop before it is killed."""
STAGE_SHOWN = 1.0
"""Seconds after which a stage of a start is shown, if it still lasts."""
MOST_REFUSALS = 3
"""Refused starts in a row (no memory, process or descriptor left) that are tried again before they count as a death."""


class State(enum.Enum):
    STARTING = enum.auto()
    RUNNING = enum.auto()
    REPAIRING = enum.auto()
    STOPPING = enum.auto()


class StateMachine:
    """Every public method but the constructor is an event. Times are monotonic seconds."""

    def __init__(self, topology: Topology, settings: SupervisorConfig, now: float) -> None:
        self._topology, self._settings = topology, settings
        known = {child.name: child for child in topology.children}
        ranks = tuple(child.name for child in topology.children if child.shares_fate)
        self.ranks = ranks if len(ranks) > 1 else ()
        """The processes that share one fate, and a restart budget."""
        shared = self._new_budget()
        self.children = {
            name: ChildState(
                known.get(name) or Child(name, ""),
                shared if name in self.ranks else self._new_budget(),
                owes_since=now,
            )
            for name in topology.actors
        }
        self.state = State.STARTING
        self.epoch = 0
        self.facts = Facts()
        self.reason = ""
        """Why the server ended, if it did not end cleanly."""
        self._code, self.draining = EXIT_OK, False
        self.started_at = self.changed_at = now
        """When the server began, and when its last repair did."""
        self._leaving = ""
        """The child whose exit STOPPING waits for."""

    # --- processes ----------------------------------------------------------------------------------------------------

    def start(self) -> list[Action]:
        if self.state is State.STOPPING:
            return []
        return [self._spawn(tuple(child.name for child in self._topology.children), self.changed_at)]

    def exited(self, name: str, reason: str, now: float) -> list[Action]:
        """A process is gone; `reason` says how, in words."""
        old = self.children[name]
        self.children[name] = child = ChildState(
            old.spec, old.budget, restarts=old.restarts, replaced=old.replaced, died=reason
        )
        if self.state is State.STOPPING:
            return self._stop_next() if name == self._leaving else []
        if self.state is State.STARTING:
            return self.stop(EXIT_START_FAILED, f"start failed: {name} {reason}")
        if old.killed_with_ranks:
            return self._replace(name, now)
        reason = f"cannot start: {old.failed}" if old.failed else reason
        actions: list[Action] = [Log(logging.WARNING, f"{name} {reason}")]
        opens = self.epoch + (self.state is State.RUNNING)
        child.budget.charge(now, ready=now - old.ready_at if old.ready else None, epoch=opens)
        child.away = child.budget.spent and child.spec.dispensable
        if child.budget.spent and not child.away:
            return actions + self.stop(EXIT_GAVE_UP, f"giving up: {name} {reason}, and the restart budget is spent")
        if child.away:
            actions.append(Log(logging.ERROR, f"the restart budget of {name} is spent: its requests are refused"))
        child.restarts += 1
        if self.state is not State.RUNNING or old.ready:  # else this epoch began without it
            actions += self._repair(name, reason, now)
        elif child.away != old.away:
            actions.append(self._health())
        return actions + self._replace(name, now)

    def refused(self, names: tuple[str, ...], reason: str, now: float) -> list[Action]:
        """The system started none of these: it has no memory, process or descriptor left."""
        refusals = 1 + max(self.children[name].refusals for name in names)
        if self.state in (State.STARTING, State.STOPPING) or refusals > MOST_REFUSALS:
            return [action for name in names for action in self.exited(name, f"cannot be started: {reason}", now)]
        for name in names:
            self.children[name].running, self.children[name].refusals = False, refusals
        told = Log(logging.WARNING, f"{', '.join(names)} cannot be started: {reason}")
        return [told, self._restart_after(pause_after(refusals), names, now)]

    def restart(self, names: tuple[str, ...], due: float) -> list[Action]:
        """The pause before a start is over."""
        if self.state is State.STOPPING or any(self.children[name].restart != (names, due) for name in names):
            return []
        return [self._spawn(names, due, replace=True)]

    def received(self, name: str, message: Wire, now: float) -> list[Action]:
        """A control message from an actor."""
        child = self.children[name]
        match message:
            case Pong():
                child.pinged_at = None
                was_suspect, child.suspect = child.suspect, False
                return [self._health()] if was_suspect else []
            case Ready(facts):
                self.facts = _merged(self.facts, facts)
                child.ready, child.ready_at, child.stage, child.away = True, now, None, False
                child.progress = None
                ended = self._end_epoch(now) if self.state is State.RUNNING else []
                return ended + self._begin_if_complete(now)
            case ResetDone(epoch) if epoch == self.epoch:
                child.resetting = False
                return (self._release_ranks() if name == ROUTER else []) + self._begin_if_complete(now)
            case Failed(reason) if self.state is State.STARTING:
                return self.stop(EXIT_START_FAILED, f"{name} cannot start: {reason}")
            case Failed(reason) if self.state is not State.STOPPING:
                child.failed = reason
                return [Kill(name)]
            case Blamed(culprit, epoch) if name == self._topology.front and culprit in self.children:
                if self.children[culprit].budget.excuse(epoch):
                    return [Log(logging.WARNING, f"a request may have ended {culprit}: the restart does not count")]
            case Loading(_, _, total):
                child.progress, child.stage = message, None if total else message
                return [Progress(name, message) if total else After(STAGE_SHOWN, self.stage_lasts, (name, message))]
            case Drained() if self.draining:
                return [Log(logging.INFO, "drained"), *self.stop()]
        return []

    def stage_lasts(self, name: str, loading: Loading) -> list[Action]:
        """STAGE_SHOWN after `loading` was told: show it if the stage is not over."""
        return [Progress(name, loading)] if self.children[name].stage is loading else []

    def tick(self, now: float) -> list[Action]:
        """Ping every ready child; silence for half its patience makes it suspect, for all of it ends it. A start that
        takes longer than start_timeout has failed."""
        actions = self._end_late_starts(now)
        for name, child in self.children.items():
            if self.state is State.STOPPING or not (child.running and child.ready):
                continue
            if child.pinged_at is None:
                child.pinged_at = now
                actions.append(Send(name, Ping(self.epoch)))
                continue
            silent = now - child.pinged_at
            limit = child.spec.patience * self._settings.watchdog_timeout
            if silent > limit:
                actions += self._kill_hung(name, silent)
            elif silent > limit / 2 and not child.suspect:
                child.suspect = True
                actions += [Log(logging.WARNING, f"{name} has not answered for {silent:.1f} s"), self._health()]
        return actions

    def _end_late_starts(self, now: float) -> list[Action]:
        """Kill who owes Ready or ResetDone for too long; the first start fails with it."""
        timeout = self._settings.start_timeout
        late = sorted(
            name
            for name, child in self.children.items()
            if (child.resetting or not child.ready) and now - child.owes_since > timeout
        )
        if self.state is State.STOPPING or not late:
            return []
        actions = [action for name in late for action in self._kill_hung(name, timeout)]
        if self.state is State.STARTING:
            reason = f"start failed: {', '.join(late)} not ready after {timeout:.0f} s"
            actions += self.stop(EXIT_START_FAILED, reason)
        return actions

    def ranks_compared(self, torn: bool, now: float) -> list[Action]:
        """The answer to CompareRanks. `torn`: not every rank was sent the last plan."""
        waiting = [name for name in self.ranks if self.children[name].resetting]
        if waiting and torn:
            told = Log(logging.WARNING, "not every rank got the last step: all ranks are replaced")
            return [told, *self._repair(min(waiting), "waits for a step that not every rank got", now)]
        return [Send(name, Reset(self.epoch)) for name in waiting]

    # --- the end ------------------------------------------------------------------------------------------------------

    def drain(self) -> list[Action]:
        """A signal: after drain_delay refuse new requests and let running ones finish for at most drain_timeout, then
        stop. A second call, or one during the start, stops at once."""
        if self.draining or self.state in (State.STARTING, State.STOPPING):
            return self.stop()
        self.draining = True
        timeout = self._settings.drain_delay + self._settings.drain_timeout
        told = Log(logging.INFO, f"draining: running requests have {timeout:.0f} s")
        return [told, self._health(), After(timeout, self.drain_overdue, ())]

    def drain_overdue(self) -> list[Action]:
        if self.state is State.STOPPING:
            return []
        return [Log(logging.WARNING, "drain timeout: stopping with requests running"), *self.stop()]

    def stop(self, code: int = EXIT_OK, reason: str = "") -> list[Action]:
        """Stop all children and exit with this code. Idempotent: the first call decides."""
        if self.state is State.STOPPING:
            return []
        self.state, self.reason, self._code = State.STOPPING, reason, code
        for child in self.children.values():
            child.stage = None
        return [*([Log(logging.ERROR, reason)] if reason else []), *self._stop_next()]

    def stop_overdue(self, name: str) -> list[Action]:
        if not self.children[name].running:
            return []
        return [Log(logging.WARNING, f"{name} did not stop in time: killed"), Kill(name)]

    def _stop_next(self) -> list[Action]:
        """Reverse start order, ranks together; a child that is not ready is killed."""
        running = [child.name for child in self._topology.children if self.children[child.name].running]
        if not running:  # the reason of a failure remains the last line of the log
            return [*([] if self.reason else [Log(logging.INFO, "stopped")]), Exit(self._code)]
        self._leaving = running[-1]
        actions: list[Action] = []
        for name in self._with_ranks(self._leaving):
            child = self.children[name]
            if child.running and not child.told_to_stop and not child.hung:
                actions.append(Send(name, Stop()) if child.ready else Kill(name))
            child.told_to_stop = True
        return [*actions, After(STOP_GRACE, self.stop_overdue, (self._leaving,))]

    # --- repairs ------------------------------------------------------------------------------------------------------

    def _repair(self, name: str, reason: str, now: float) -> list[Action]:
        """The child is gone, or must go: the epoch with it, and with the ranks that share its fate, ends."""
        group = [self.children[member] for member in self._with_ranks(name)]
        for child in group:
            child.ready = False
        actions = self._end_epoch(now) if self.state is State.RUNNING else []
        for child in group:
            child.resetting, child.replaced, child.killed_with_ranks = False, True, child.running
        actions += [Kill(child.spec.name) for child in group if child.running]
        actions.append(self._health(f"{name} {reason} and is being replaced"))
        return actions + (self._release_ranks() if name == ROUTER else [])

    def _end_epoch(self, now: float) -> list[Action]:
        self.state = State.REPAIRING
        self.epoch += 1
        self.changed_at = now
        for child in self.children.values():
            child.replaced, child.resetting = False, child.ready
            if child.resetting:
                child.owes_since = now
        survivors = [name for name, child in self.children.items() if child.resetting and name not in self.ranks]
        return [Send(name, Reset(self.epoch)) for name in survivors]

    def _release_ranks(self) -> list[Action]:
        return [CompareRanks()] if any(self.children[name].resetting for name in self.ranks) else []

    def _replace(self, name: str, now: float) -> list[Action]:
        """Start it again, after the pause of its budget; ranks when all of them are gone."""
        group = self._with_ranks(name)
        if any(self.children[member].running for member in group):
            return []
        pause = self.children[name].budget.not_before - now
        return [self._restart_after(pause, group, now) if pause > 0 else self._spawn(group, now, replace=True)]

    def _restart_after(self, pause: float, names: tuple[str, ...], now: float) -> Action:
        for name in names:
            self.children[name].restart = names, now + pause
        return After(pause, self.restart, (names, now + pause))

    def _spawn(self, names: tuple[str, ...], now: float, *, replace: bool = False) -> Action:
        for name in names:
            child = self.children[name]
            child.running, child.owes_since, child.restart = True, now, None
        return Spawn(names, replace)

    def _begin_if_complete(self, now: float) -> list[Action]:
        """Open the next epoch when no ResetDone and no Ready is outstanding."""
        first = self.state is State.STARTING
        if self.state not in (State.STARTING, State.REPAIRING) or any(
            child.resetting or not (child.ready or (child.spec.dispensable and not first))
            for child in self.children.values()
        ):
            return []
        self.epoch = 1 if first else self.epoch  # lanes are made with epoch 1
        self.state = State.RUNNING
        begin = Begin(self.epoch, self.facts, tuple(name for name, child in self.children.items() if child.replaced))
        how = "ready" if first else "serving again"
        return [
            *([] if first else [ResetData(self.epoch)]),
            *(Send(name, begin) for name, child in self.children.items() if child.ready),
            self._health(),
            Log(logging.INFO, f"epoch {self.epoch}: {how} after {now - self.changed_at:.2f} s"),
            *([Serving(self.facts)] if first else []),
        ]

    def _kill_hung(self, name: str, silent: float) -> list[Action]:
        child = self.children[name]
        if child.hung or not child.running:
            return []
        child.hung = True
        return [Kill(name, silent)]

    def _health(self, reason: str = "") -> Action:
        suspects = ", ".join(sorted(name for name, child in self.children.items() if child.suspect))
        reason = reason or (f"{suspects} does not answer" if suspects else "")
        ok = self.state is State.RUNNING and not reason
        away = tuple(name for name, child in self.children.items() if child.away)
        return Send(self._topology.front, Health(ok, reason, self.draining, away))

    def _new_budget(self) -> RestartBudget:
        return RestartBudget(self._settings.max_restarts, self._settings.restart_window)

    def _with_ranks(self, name: str) -> tuple[str, ...]:
        """All that fall with this child, itself included."""
        return self.ranks if name in self.ranks else (name,)


def _merged(known: Facts, new: Facts) -> Facts:
    """`known` with every field that `new` sets (differs from the default); end-of-sequence ids are united."""
    changes = {
        field: value
        for field, default in zip(Facts.__struct_fields__, msgspec.structs.astuple(Facts()), strict=True)
        if (value := getattr(new, field)) != default
    }
    if known.eos_ids and new.eos_ids:
        changes["eos_ids"] = tuple(sorted({*known.eos_ids, *new.eos_ids}))
    return msgspec.structs.replace(known, **changes)
