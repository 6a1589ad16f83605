"""Shared by the tests of lanes: both ends in one process, and child processes that end with the test."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from lightllm_mp.shm import Bell, Inbox, Lane, Sender

CHECKED = struct.Struct("<II")


class Pair:
    """One lane with both ends in this process; the ends are made when they are first used (after a fork, say)."""

    def __init__(self, capacity: int = 1 << 16) -> None:
        self.lane = Lane.create(capacity, 1, 2)
        self.producer_bell, self.consumer_bell = Bell.create(1), Bell.create(2)
        self._made: list[Any] = []

    def sender(self) -> Sender:
        return self._keep(Sender(self.lane, self.producer_bell, self.consumer_bell))

    def inbox(self) -> Inbox:
        inbox = self._keep(Inbox(self.consumer_bell))
        inbox.add(self.lane, self.producer_bell)
        return inbox

    def producer_inbox(self) -> Inbox:
        """The bell on which the producer sleeps."""
        return self._keep(Inbox(self.producer_bell))

    def ends(self) -> tuple[Sender, Inbox]:
        return self.sender(), self.inbox()

    def _keep(self, end: Any) -> Any:
        self._made.append(end)
        return end

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._made:
            end.close()
        for part in (self.lane, self.producer_bell, self.consumer_bell):
            part.close()


def payloads(records: list[tuple[int, int, bytes]]) -> list[bytes]:
    return [payload for _, _, payload in records]


def checked(number: int, size: int) -> bytes:
    """A record that proves its own number and wholeness: number, CRC-32 of the rest, `size` bytes."""
    body = number.to_bytes(4, "little") * (size // 4 + 1)
    return CHECKED.pack(number, zlib.crc32(body[:size])) + body[:size]


def number_of(record: bytes) -> int:
    """The number of a whole record; AssertionError if it is torn."""
    number, crc = CHECKED.unpack_from(record)
    assert zlib.crc32(record[CHECKED.size :]) == crc, f"record {number} is torn"
    return number


class Child:
    """A forked process that runs `work` and ends with status 0, or 1 and a traceback."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def notified(self, timeout: float) -> float:
        """Seconds until the pidfd reported the end."""
        start = time.monotonic()
        assert select.select([self.pidfd], [], [], timeout)[0], "the child did not end"
        return time.monotonic() - start

    def join(self, timeout: float = 20) -> int:
        """The exit status, negative for a signal."""
        if self.status is None:
            self.notified(timeout)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.pidfd)
        return self.status


@contextlib.contextmanager
def child(work: Callable[[], None]) -> Iterator[Child]:
    process = Child(work)
    try:
        yield process
    finally:
        if process.status is None:
            process.kill()
            process.join()


def until(condition: Callable[[], bool], timeout: float = 10) -> None:
    """Waits for another process's work."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)
