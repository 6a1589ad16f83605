"""Which request breaks the engine? After repeated repairs those that may be the cause go on one at a time.

A request is suspected while the same process has died again and again since its last token. Everybody is submitted
again after a first death. After a second one the suspects wait for each other: the next is submitted when the one
before has got a token or has ended. Whoever is there when that process dies a third time is given up, and the others
go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lightllm_mp.actors.front.live_request import LiveRequest

ALONE, GIVEN_UP = 2, 3
"""Deaths of one process since the last token after which a request is submitted alone, or not at all. The restart
budget (3 by default) allows both."""


class Quarantine:
    """`submit` sends a request to the engine again."""

    def __init__(self, submit: Callable[[LiveRequest], None]) -> None:
        self._submit = submit
        self._held: deque[LiveRequest] = deque()
        self._alone: LiveRequest | None = None
        """The suspect that the engine has."""

    def clear(self) -> None:
        """The engine has forgotten everybody."""
        self._held.clear()
        self._alone = None

    def take_back(self, live: LiveRequest, restarted: frozenset[str]) -> bool:
        """Submit an unfinished request after a repair in which these processes were replaced, now or in its turn.
        False: it is to be given up."""
        if live.sent and restarted:
            again = live.blamed & restarted
            live.fruitless = live.fruitless + 1 if again else 1
            live.blamed = again or restarted
        live.sent = False
        if live.fruitless >= GIVEN_UP:
            return False
        if live.fruitless >= ALONE:
            self._held.append(live)
        else:
            self._submit(live)
        return True

    def cleared(self, live: LiveRequest) -> None:
        """The request got a token or is over."""
        live.fruitless, live.blamed = 0, frozenset()
        if live is self._alone:
            self._alone = None
            self.go_on()
        elif live in self._held:
            self._held.remove(live)

    def go_on(self) -> None:
        """Submit the next suspect, if the engine has none."""
        if self._alone is None and self._held:
            self._alone = self._held.popleft()
            self._submit(self._alone)
