"""The workers of a tensor-parallel model as one: they compute every step together, so they fall and rise together."""

from __future__ import annotations

import os

from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import ROUTER, Topology


class WorkerGroup:
    """Which processes share a fate, where they meet, and whether they have been told the same."""

    def __init__(self, topology: Topology, wiring: SharedMemory) -> None:
        members = frozenset(child.name for child in topology.children if child.shares_fate)
        self.members = members if len(members) > 1 else frozenset[str]()
        self._wiring = wiring
        self._meeting = -1
        self._before: dict[str, int] = {}
        self.begin()

    def of(self, name: str) -> frozenset[str]:
        """Everybody who falls with `name`, itself included."""
        return self.members if name in self.members else frozenset({name})

    @property
    def meeting(self) -> int:
        """Descriptor of the file in which the members find each other; -1 without a crew. It has no name."""
        if self.members and self._meeting < 0:
            self._meeting = os.memfd_create("meeting")
        return self._meeting

    def part(self) -> None:
        """The crew is gone: its successors meet in a file of their own."""
        if self._meeting >= 0:
            os.close(self._meeting)
        self._meeting = -1

    def begin(self) -> None:
        """An epoch begins: nobody has been sent a plan in it."""
        self._before = self._plans()

    @property
    def torn(self) -> bool:
        """The router is gone, and not every member has been sent its last plan: whoever has it waits for ever."""
        now = self._plans()
        return len({now[name] - self._before[name] for name in now}) > 1

    def _plans(self) -> dict[str, int]:
        """How many plans each member was sent, ever."""
        return {name: self._wiring.lane(ROUTER, name).stats().puts for name in self.members}
