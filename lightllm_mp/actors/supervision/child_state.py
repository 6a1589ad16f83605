"""What the state machine knows of one actor."""

from __future__ import annotations

from dataclasses import dataclass

from lightllm_mp.actors.supervision.restart_budget import RestartBudget
from lightllm_mp.actors.topology import Child
from lightllm_mp.messages import ActorCondition, Loading


@dataclass
class ChildState:
    """What the supervisor knows of one actor. The front of an embedded engine has no process."""

    spec: Child
    budget: RestartBudget
    running: bool = False
    """It has a process."""
    ready: bool = False
    """Ready has come from this process."""
    ready_at: float = 0.0
    resetting: bool = False
    """It owes ResetDone."""
    owes_since: float = 0.0
    """Since when it owes Ready or ResetDone."""
    failed: str = ""
    """Why it cannot start, in its own words."""
    refusals: int = 0
    """How often in a row the system refused to start it."""
    restart: tuple[tuple[str, ...], float] | None = None
    """Its start will be tried again: with whom, and when."""
    away: bool = False
    """It is dispensable, and its restart budget is spent."""
    killed_with_ranks: bool = False
    """Another rank died, so this one is being killed: not a death of its own."""
    replaced: bool = False
    """It lost its memory since the last Begin."""
    hung: bool = False
    """It has not answered in time and is being killed."""
    told_to_stop: bool = False
    pinged_at: float | None = None
    """Time of the ping that it has not answered yet."""
    suspect: bool = False
    stage: Loading | None = None
    """The stage of its start that it told last, while that lasts."""
    restarts: int = 0
    progress: Loading | None = None
    """What it told last of its start, until it is ready."""
    died: str = ""
    """How its last process ended."""

    @property
    def condition(self) -> ActorCondition:
        """In one word, for people."""
        if self.away:
            return "away"
        if not self.running:
            return "pausing" if self.restart is not None else "down"
        if self.hung or self.killed_with_ranks:
            return "killed"
        if self.told_to_stop:
            return "stopping"
        if self.suspect:
            return "silent"
        if self.resetting:
            return "resetting"
        return "ready" if self.ready else "starting"
