"""How often a process may be replaced, and how long to wait before it is started again. Pure: no clock."""

from __future__ import annotations

from collections import deque

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds to wait after the first failure, and at most; each further failure doubles them."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row (at least one)."""
    return min(FIRST_PAUSE * 2.0 ** min(failures - 1, 32), LONGEST_PAUSE)


class RestartBudget:
    """The budget of one process, or of the ranks together. Times are monotonic seconds.

    It is spent by more than `most` restarts within `window` seconds (restart intensity as in Erlang/OTP), or by more
    than `most` setbacks in a row, however slow they are. A setback is a failed start or a restart beyond the budget. A
    process that was ready for a whole window ends the row. A restart that a request is to blame for does not count.
    """

    def __init__(self, most: int, window: float) -> None:
        self._most, self._window = most, window
        self._charged: deque[tuple[float, int]] = deque()
        """(time, epoch that the repair opens; 0: no request can be to blame)"""
        self._setbacks = 0
        self.not_before = 0.0
        """When the next start may be tried."""

    def charge(self, now: float, *, ready: float | None, epoch: int = 0) -> None:
        """A process is gone that had been ready for `ready` seconds. None: its start failed."""
        while self._charged and now - self._charged[0][0] > self._window:
            self._charged.popleft()
        self._charged.append((now, epoch))
        if ready is not None and ready > self._window:
            self._setbacks = 0
        if ready is None or len(self._charged) > self._most:
            self._setbacks += 1
            self.not_before = now + pause_after(self._setbacks)

    def excuse(self, epoch: int) -> bool:
        """A request is to blame for the restart in the repair that opened `epoch`. False: none was charged."""
        kept = [entry for entry in self._charged if entry[1] != epoch]
        found = len(kept) < len(self._charged)
        self._charged = deque(kept)
        return found

    @property
    def spent(self) -> bool:
        return max(len(self._charged), self._setbacks) > self._most
