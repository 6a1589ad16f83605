"""Restart intensity as in Erlang/OTP: so many restarts within so many seconds, then the supervisor gives up."""

from __future__ import annotations

from collections import deque


class RestartBudget:
    def __init__(self, most: int, window: float) -> None:
        self._most, self._window = most, window
        self._times: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Record a restart at `now` (seconds, monotonic). False: the budget of the window was already spent."""
        while self._times and now - self._times[0] > self._window:
            self._times.popleft()
        if len(self._times) >= self._most:
            return False
        self._times.append(now)
        return True
