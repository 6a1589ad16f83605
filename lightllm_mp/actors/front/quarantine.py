"""Finds the request that crashes the engine: after repeated repairs, suspects run one at a time.

A request is a suspect if the same process has died repeatedly since the request's last token. After the first death all
requests are submitted again. After the second the suspects run one by one: the next is submitted when the one before
got a token or ended. A suspect that is running when that process dies a third time fails; the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.front.token_counts import TokenCount

ALONE, GIVEN_UP = 2, 3
"""Deaths of one process since the last token after which a request is submitted alone, or fails. The restart budget
(3 by default) allows both."""


Suspect = LiveRequest | TokenCount


class Quarantine:
    """`submit` sends a request to the engine again."""

    def __init__(self, submit: Callable[[Suspect], None]) -> None:
        self._submit = submit
        self._held: deque[Suspect] = deque()
        self._alone: Suspect | None = None
        """The suspect that the engine is running."""

    def clear(self) -> None:
        """The engine has lost all requests."""
        self._held.clear()
        self._alone = None

    def take_back(self, live: Suspect, restarted: frozenset[str]) -> bool:
        """Submit an unfinished request after a repair that replaced these processes, now or in its turn.
        False: the caller must fail it."""
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

    def cleared(self, live: Suspect) -> None:
        """The request got a token or ended: it is no suspect."""
        live.fruitless, live.blamed = 0, frozenset()
        if live is self._alone:
            self._alone = None
            self.go_on()
        elif live in self._held:
            self._held.remove(live)

    def replace(self, old: LiveRequest, new: LiveRequest) -> None:
        """`new` is the same request with another consumer."""
        self._held = deque(new if live is old else live for live in self._held)
        if self._alone is old:
            self._alone = new

    def go_on(self) -> None:
        """Submit the next suspect if the engine runs none."""
        if self._alone is None and self._held:
            self._alone = self._held.popleft()
            self._submit(self._alone)
