"""Finds the request that crashes the engine: after repeated repairs, suspects run one at a time.

A request is a suspect if the same process has died repeatedly since the request's last token. After the first death all
requests are submitted again. After the second the suspects run one by one: the next is submitted when the one before
got a token or ended. A suspect that is running when that process dies a third time fails; the others go on. A request
without images is no suspect when the visual actor dies, nor is one without a constraint when the guide actor dies.

A death that a suspect may be to blame for is not charged to the restart budget, nor is one whose suspect left before it
could be cleared: else a client could end the server with one harmful request after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.front.tokenizer_calls import TokenizerCall
from lightllm_mp.actors.topology import GUIDE, VISUAL

ALONE, GIVEN_UP = 2, 3
"""Deaths of one process since the last token after which a request is submitted alone, or fails. The restart budget
(3 by default) allows both."""
LEFT_BEFORE = 5.0
"""A request that left without a token may be to blame for a death up to so many seconds later: a step goes on."""
OPTIONAL = frozenset({VISUAL, GUIDE})
"""The processes that not every request needs."""

Suspect = LiveRequest | TokenizerCall


class Quarantine:
    """`submit` sends a request to the engine again. `blame(name, epoch)` is called once in an epoch with the name of a
    process and the epoch that its death led to: a request may be to blame for it."""

    def __init__(self, submit: Callable[[Suspect], None], blame: Callable[[str, int], None]) -> None:
        self._submit = submit
        self._blame = blame
        self._restarted: frozenset[str] = frozenset()
        """The processes that the last repair replaced."""
        self._deaths: dict[str, deque[int]] = {}
        """For each process the epochs that its last deaths led to."""
        self._told: set[tuple[str, int]] = set()
        self._left: dict[frozenset[str], float] = {}
        """When the last request that needed these of OPTIONAL left without a token (monotonic)."""
        self._ended: float | None = None
        """When the engine lost its requests; None: it runs."""
        self._held: deque[Suspect] = deque()
        self._alone: Suspect | None = None
        """The suspect that the engine is running."""

    def clear(self) -> None:
        """The engine has lost all requests."""
        self._held.clear()
        self._told.clear()
        self._alone = None
        if self._ended is None:
            self._ended = monotonic()

    def begin(self, restarted: frozenset[str], epoch: int) -> None:
        """A repair has replaced these processes."""
        self._restarted = restarted
        for name in restarted:
            self._deaths.setdefault(name, deque(maxlen=GIVEN_UP)).append(epoch)
        for needed, at in self._left.items():
            if self._ended is not None and at > self._ended - LEFT_BEFORE:
                self._suspect(self._touched(needed), 1)
        self._ended = None
        self._left.clear()

    def recall(self, name: str, epochs: Iterable[int]) -> None:
        """Deaths of this process that a front before this one saw."""
        self._deaths[name] = deque(sorted(epochs), maxlen=GIVEN_UP)

    def take_back(self, live: Suspect) -> bool:
        """Submit an unfinished request after `begin`, now or in its turn. False: the caller must fail it."""
        touched = self._touched(_needed(live))
        if live.sent and touched:
            again = live.blamed & touched
            live.fruitless = live.fruitless + 1 if again else 1
            live.blamed = again or touched
        live.sent = False
        if live.fruitless >= ALONE:
            self._suspect(live.blamed, live.fruitless)
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

    def left(self, live: Suspect) -> None:
        """Its consumer is done with the request, perhaps before it was cleared."""
        if live.open:
            self._suspect(live.blamed, live.fruitless)
            if live.sent and (live.fruitless or not live.first):
                self._left[_needed(live)] = monotonic()
        self.cleared(live)

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

    def _touched(self, needed: frozenset[str]) -> frozenset[str]:
        """The replaced processes that a request may have ended which needs these of OPTIONAL."""
        return self._restarted - (OPTIONAL - needed)

    def _suspect(self, names: frozenset[str], deaths: int) -> None:
        """A request may be to blame for the last `deaths` deaths of each of these processes."""
        for death in [(name, epoch) for name in names for epoch in list(self._deaths.get(name, ()))[-deaths:]]:
            if death not in self._told:
                self._told.add(death)
                self._blame(*death)


def _needed(live: Suspect) -> frozenset[str]:
    """The processes of OPTIONAL that the request needs."""
    guided = isinstance(live, LiveRequest) and live.request.terms.guide is not None
    return frozenset(({VISUAL} if live.images else set()) | ({GUIDE} if guided else set()))
