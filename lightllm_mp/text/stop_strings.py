"""Finds stop strings in a text that arrives in pieces: an Aho-Corasick automaton, linear in the length of the text.

The match that ends first wins; of several that end at the same character, the longest. So the match depends only on the
text, not on its split into tokens, and is known as soon as the last character of the stop string arrives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakValueDictionary

from lightllm_mp.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_BYTES = 1024


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings without empty ones and duplicates.

    InvalidRequest if there are more than 16, or one is longer than 1 KiB.
    """
    unique = tuple(dict.fromkeys(stop for stop in stops if stop))
    if len(unique) > MAX_STOPS:
        raise InvalidRequest(f"there are {len(unique)} stop strings; at most {MAX_STOPS} are allowed", param="stop")
    if any(len(stop.encode("utf-8", "replace")) > MAX_STOP_BYTES for stop in unique):
        raise InvalidRequest(f"a stop string is longer than {MAX_STOP_BYTES} bytes", param="stop")
    return unique


class StopAutomaton:
    """The nodes of the automaton; they do not change. About 250 bytes for each character of the stop strings."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match = [0]
        """Length of the stop string that ends at the node; 0: none."""
        for stop in stops:
            self._insert(stop)
        self.fail = self._failure_links()

    def _insert(self, stop: str) -> None:
        node = 0
        for char in stop:
            follower = self.next[node].get(char)
            if follower is None:
                follower = self.next[node][char] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[node] + 1)
                self.match.append(0)
            node = follower
        self.match[node] = len(stop)

    def _failure_links(self) -> list[int]:
        """For each node the node of its longest proper suffix. Nodes inherit shorter matches along these links."""
        fail = [0] * len(self.next)
        queue = deque(self.next[0].values())
        while queue:
            node = queue.popleft()
            for char, follower in self.next[node].items():
                back = fail[node]
                while back and char not in self.next[back]:
                    back = fail[back]
                fail[follower] = self.next[back].get(char, 0)
                self.match[follower] = self.match[follower] or self.match[fail[follower]]
                queue.append(follower)
        return fail


_automata: WeakValueDictionary[tuple[str, ...], StopAutomaton] = WeakValueDictionary()
"""Those in use: the answers to one request, and requests with equal stop strings, share one."""


class StopStrings:
    """The state of the automaton in one text.

    `held` is the length of the longest suffix of the text so far that is a prefix of a stop string. It must not be
    shown yet.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        key = check_stops(stops)
        automaton = _automata.get(key)
        if automaton is None:
            automaton = _automata[key] = StopAutomaton(key)
        self._automaton = automaton
        self._node = 0

    @property
    def held(self) -> int:
        return self._automaton.depth[self._node]

    def find(self, text: str) -> tuple[int, int] | None:
        """Reads on. Returns the end of the first match in `text`, and its length, which may exceed that end."""
        automaton, node = self._automaton, self._node
        step, fail, match = automaton.next, automaton.fail, automaton.match
        root = step[0]
        if not node and root.keys().isdisjoint(text):
            return None  # the usual case, without a Python loop
        for i, char in enumerate(text):
            while node and char not in step[node]:
                node = fail[node]
            node = step[node].get(char, 0) if node else root.get(char, 0)
            if match[node]:
                self._node = node
                return i + 1, match[node]
        self._node = node
        return None
