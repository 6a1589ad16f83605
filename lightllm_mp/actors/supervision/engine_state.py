"""What the processes and lanes do now, for people who watch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

from lightllm_mp.actors.supervision.child_process import ChildProcess
from lightllm_mp.actors.supervision.child_state import ChildState
from lightllm_mp.actors.supervision.process_usage import ProcessUsage, process_usage
from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.supervision.state_machine import StateMachine
from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.messages import ActorState, EngineState, ServerState


def engine_state(
    machine: StateMachine, processes: Mapping[str, ChildProcess], memory: SharedMemory, now: float
) -> EngineState:
    """The answer to Inspect. `now`: monotonic time in seconds. It reads two small files of /proc for each process."""
    own = process_usage(os.getpid())
    supervisor = ActorState(SUPERVISOR, "ready", os.getpid(), round(now - machine.started_at, 2), **own._asdict())
    actors = [actor_state(child, processes.get(name), now) for name, child in machine.children.items()]
    state = cast(ServerState, machine.state.name.lower())
    return EngineState(
        state, machine.epoch, round(now - machine.changed_at, 2), (supervisor, *actors), memory.lane_states()
    )


def actor_state(child: ChildState, process: ChildProcess | None, now: float) -> ActorState:
    """`process`: the last one that was started for it."""
    if process is not None and not (child.running and process.alive):
        process = None
    usage = process_usage(process.pid) if process is not None else ProcessUsage()
    progress = child.progress if child.running else None
    return ActorState(
        child.spec.name,
        child.condition,
        process.pid if process is not None else 0,
        round(now - process.started, 2) if process is not None else 0.0,
        child.restarts,
        child.died,
        progress.what if progress else "",
        progress.done if progress else 0,
        progress.total if progress else 0,
        round(_wait(child, now), 2),
        *usage,
    )


def _wait(child: ChildState, now: float) -> float:
    if child.restart is not None:
        return max(0.0, child.restart[1] - now)
    return now - child.pinged_at if child.suspect and child.pinged_at is not None else 0.0
