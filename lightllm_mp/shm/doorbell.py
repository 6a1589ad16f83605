"""The bell of an actor: one eventfd that its peers use to wake it, for all of its lanes."""

from __future__ import annotations

import contextlib
import os
import select

from lightllm_mp.errors import StartupError
from lightllm_mp.shm.layout import BELL_COUNTS, BELL_EPOCH, BELL_PID, PAGE, PARKED, read_bell_header, write_bell_header
from lightllm_mp.shm.segment import Segment


class Bell:
    """One memfd page (parked flag, epoch, pid, counters) and one nonblocking eventfd, per actor.

    The parked flag has two legal transitions. 0 -> 1: the owner wants to sleep. It then passes a full fence, checks all
    its lanes again, and sleeps only if they are empty. 1 -> 0: the owner wakes or finds data, or one peer clears the
    flag by exchange and then writes the eventfd. The eventfd counts each ring until the owner reads it, so no ring is
    lost. A ring without data is harmless.
    """

    def __init__(self, page: Segment, event_fd: int) -> None:
        self.page = page
        self.event_fd = event_fd
        self.actor_id = read_bell_header(page.view)
        self._u64 = page.view.cast("Q")
        self._u32 = page.view.cast("I")
        self._poller: select.epoll | None = None
        self._open = True

    @classmethod
    def create(cls, actor_id: int) -> Bell:
        """A new bell. StartupError if there is too little memory or too few descriptors."""
        page = Segment.create(f"bell-{actor_id}", PAGE)
        try:
            event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            page.close()
            raise StartupError(f"no eventfd for actor {actor_id}: {error}; raise the limit of open files") from error
        write_bell_header(page.view, actor_id)
        return cls(page, event_fd)

    @classmethod
    def attach(cls, page_fd: int, event_fd: int) -> Bell:
        """Takes ownership of two inherited descriptors. StartupError (the caller keeps them) if they are not a bell."""
        page = Segment.attach(os.dup(page_fd))
        try:
            bell = cls(page, event_fd)
            os.set_blocking(event_fd, False)
        except (StartupError, OSError):
            page.close()
            raise
        os.close(page_fd)
        return bell

    @property
    def fds(self) -> tuple[int, int]:
        return self.page.fd, self.event_fd

    def ring(self) -> None:
        """Wakes the owner, or makes its next wait return at once."""
        with contextlib.suppress(BlockingIOError):  # the counter is full, so the bell rings already
            os.eventfd_write(self.event_fd, 1)

    def fileno(self) -> int:
        return self.event_fd

    def poller(self) -> select.epoll:
        """For the Python ring, in the owner's process: the epoll set that it sleeps on, with the eventfd in it."""
        if self._poller is None:
            self._poller = select.epoll()
            self._poller.register(self.event_fd, select.EPOLLIN)
        return self._poller

    def claim(self, epoch: int = 0) -> None:
        """Called by the owner: stores its pid and epoch for the supervisor and for tools."""
        self._u64[BELL_PID // 8] = os.getpid()
        self._u64[BELL_EPOCH // 8] = epoch

    @property
    def pid(self) -> int:
        return self._u64[BELL_PID // 8]

    @property
    def epoch(self) -> int:
        return self._u64[BELL_EPOCH // 8]

    @property
    def parked(self) -> bool:
        return self._u32[PARKED // 4] != 0

    @property
    def parks(self) -> int:
        """How often the owner parked to sleep."""
        return self._u64[BELL_COUNTS // 8]

    @property
    def wakes(self) -> int:
        """How often the owner woke or read its bell."""
        return self._u64[BELL_COUNTS // 8 + 1]

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._poller is not None:
            self._poller.close()
        self._u64.release()
        self._u32.release()
        self.page.close()
        os.close(self.event_fd)
