"""The ranks of a tensor-parallel model: where they find each other, and whether all were sent the same steps."""

from __future__ import annotations

import os
import socket

from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.errors import StartupError
from lightllm_mp.shm.memfd import create_memfd


class WorkerGroup:
    """`members`: the names of the ranks and of other machines that hold ranks; empty for a single worker, which needs
    no group. `host`: this machine's address, where ranks of other machines find it; empty: there are none. StartupError
    if it is not an address of this machine."""

    def __init__(self, members: tuple[str, ...], wiring: SharedMemory, host: str = "") -> None:
        self.members = members
        self._wiring, self._host = wiring, host
        self.meeting, self.address = -1, ""
        if members:
            try:
                self._meet()
            except OSError as error:
                raise StartupError(f"the ranks have no place to meet: {error}") from error
        self._before = self._plans()

    def _meet(self) -> None:
        """`meeting`: descriptor of the nameless file in which the members find each other, or of a socket that listens
        at `address`, HOST:PORT. A place is new for each generation of members, so no older one gets into it."""
        if not self._host:
            self.meeting = create_memfd("meeting")
            return
        with socket.create_server((self._host, 0)) as listening:
            self.address = f"{self._host}:{listening.getsockname()[1]}"
            self.meeting = listening.detach()

    def part(self) -> None:
        """All members are gone: their successors meet elsewhere."""
        before = self.meeting
        self._meet()
        if before >= 0:
            os.close(before)

    def close(self) -> None:
        if self.meeting >= 0:
            os.close(self.meeting)

    def begin(self) -> None:
        """An epoch begins: no member has been sent a plan in it."""
        self._before = self._plans()

    @property
    def torn(self) -> bool:
        """Not every member has been sent the last plan of this epoch: a rank that has it waits for ever."""
        return len({now - before for now, before in zip(self._plans(), self._before, strict=True)}) > 1

    def _plans(self) -> list[int]:
        """How many plans each member was sent, ever."""
        return [self._wiring.lane(ROUTER, name).stats().puts for name in self.members]
