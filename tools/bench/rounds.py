"""Figures and rounds of cpu_peers.py, and whether other programs disturbed a measurement."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from lightllm_mp.cli.bench import workload
from tools.bench.peers import Peer, Prompts, Times
from tools.harness import procfs
from tools.harness.figures import say


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    key: str
    title: str
    unit: str
    more_is_better: bool


@dataclass(frozen=True)
class Work(Figure):
    """A figure from answers: `requests` at once with prompts of `length` (bench.workload) tokens. A round's value is
    the median of `repeats`, one after the other."""

    requests: int
    length: str
    tokens: int
    value: Callable[[list[Times]], float]
    repeats: int = 1

    def prompts(self, vocab: int, name: str) -> Prompts:
        made = workload.make(self.requests, self.length, str(self.tokens), vocab=vocab, name=f"{self.key}-{name}-")
        return [list(map(int, request.prompt)) for request in made]


STARTS = (Figure("start", "start to ready", "s", False), Figure("memory", "resident memory after start", "MiB", False))
UNTIMED = {"memory"}
"""Figures that other programs do not affect."""


def works(prefills: Sequence[int], depths: Sequence[int], crowds: Sequence[int], tokens: int) -> list[Work]:
    """The figures of running programs. `tokens`: how many each answer has where they count."""
    alone: dict[str, Any] = {"unit": "ms", "more_is_better": False, "requests": 1, "length": "16"}
    return [
        Work("first", "first token of a prompt of 16", tokens=1, value=first_token, repeats=5, **alone),
        Work("decode", "decode alone, a token", tokens=tokens, value=between_tokens, **alone),
        *map(prefill, prefills),
        *(depth(length, tokens) for length in depths),
        *(crowd(requests, tokens) for requests in crowds),
    ]


def prefill(length: int) -> Work:
    return Work(
        f"prefill-{length}",
        f"prefill of {length:,} tokens",
        "tokens/s",
        True,
        requests=1,
        length=str(length),
        tokens=1,
        value=lambda answers: length / answers[0].first,
        repeats=3 if length < 1000 else 1,
    )


def depth(length: int, tokens: int) -> Work:
    title = f"decode behind {length:,} tokens, a token"
    return Work(
        f"depth-{length}", title, "ms", False, requests=1, length=str(length), tokens=tokens, value=between_tokens
    )


def crowd(requests: int, tokens: int) -> Work:
    title = f"{requests} requests at once, {tokens} tokens each"
    key = f"requests-{requests}"
    return Work(key, title, "tokens/s", True, requests=requests, length="uniform:14-51", tokens=tokens, value=rate)


def first_token(answers: list[Times]) -> float:
    return 1e3 * answers[0].first


def between_tokens(answers: list[Times]) -> float:
    return 1e3 * (answers[0].last - answers[0].first) / (answers[0].tokens - 1)


def rate(answers: list[Times]) -> float:
    return sum(one.tokens for one in answers) / max(one.last for one in answers)


class Sample(NamedTuple):
    """One value, and whether unrelated programs took CPU meanwhile."""

    value: float
    disturbed: bool


class Machine:
    """Watches the CPU time of programs outside this program's tree."""

    SHARE = 0.1
    """Cores. A value counts as undisturbed if other programs take less."""
    WINDOW = 0.5
    """Seconds of one observation."""

    def __init__(self, patience: float, seconds: float) -> None:
        self._patience = patience
        self._end = time.monotonic() + seconds

    @property
    def patient(self) -> bool:
        """Whether there is time to wait and measure again."""
        return self._patience > 0 and time.monotonic() < self._end

    def wait_until_quiet(self) -> None:
        """Waits until other programs are quiet, for at most `patience` seconds and until all `seconds` are over."""
        deadline = min(time.monotonic() + self._patience, self._end)
        while time.monotonic() < deadline:
            with self.watched() as busy:
                time.sleep(self.WINDOW)
            if not busy():
                return

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """Yields a function that tells, after the block, whether others took their share of CPU or more in it."""
        start, before, spent = time.monotonic(), self._others(), list[float]()
        yield lambda: spent[0] >= spent[1]
        # Two ticks are within the error of this difference.
        spent += [self._others() - before, self.SHARE * (time.monotonic() - start) + 0.02]

    @staticmethod
    def _others() -> float:
        return procfs.machine_cpu_seconds() - procfs.tree_cpu_seconds(os.getpid())


@dataclass
class Results:
    """Samples by figure and program, and each program's (CPU s, s) while others were measured."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    idle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def idle_percent(self) -> dict[str, float]:
        """Share of one core."""
        return {name: 100 * spent / seconds for name, (spent, seconds) in self.idle.items() if seconds}


@dataclass(frozen=True)
class Run:
    """All rounds; none begins that would end after `minutes`."""

    peers: list[Peer]
    figures: Sequence[Figure]
    vocab: int
    rounds: int
    minutes: float
    machine: Machine
    results: Results = field(default_factory=Results)
    TRIES: ClassVar = 3
    """How often a disturbed value is measured again."""

    def measure(self) -> Results:
        """Measures the starts, then the work. Raises PeerError."""
        starts = [figure.key for figure in self.figures if not isinstance(figure, Work)]
        running = [figure for figure in self.figures if isinstance(figure, Work)]
        for number in self._numbers("starts", self.minutes / 3) if starts else ():
            for peer in turned(self.peers, number):
                self._start(peer, starts)
        with contextlib.ExitStack() as stack:
            for peer in self.peers if running else ():
                stack.callback(peer.stop)
                self.machine.wait_until_quiet()
                peer.start()
                for work in running[:3]:
                    peer.generate(work.prompts(self.vocab, "warm"), min(work.tokens, 4))
            for number in self._numbers("work", self.minutes) if running else ():
                for work in running:
                    for peer in turned(self.peers, number):
                        self._work(work, peer, number)
        return self.results

    def _numbers(self, what: str, minutes: float) -> Iterator[int]:
        """The rounds that fit into `minutes`, if each takes as long as those before; at least one."""
        start = time.monotonic()
        for number in range(self.rounds):
            spent = time.monotonic() - start
            if number and spent * (number + 1) / number > 60 * minutes:
                say(f"no time for more than {number} rounds")
                return
            say(f"{what}, round {number + 1} of {self.rounds}")
            yield number

    def _undisturbed(self, measure: Callable[[int], dict[str, float]], peer: Peer) -> None:
        """Keeps the values of `measure`, by figure. `measure` gets the number of the attempt."""
        for attempt in range(self.TRIES):
            self.machine.wait_until_quiet()
            with self.machine.watched() as disturbed:
                found = measure(attempt)
            if not disturbed() or not self.machine.patient:
                break
        for key, value in found.items():
            sample = Sample(value, disturbed() and key not in UNTIMED)
            self.results.samples[key][peer.name].append(sample)
            say(f"{key} {peer.name} {value:.6g}{' (disturbed)' if sample.disturbed else ''}")

    def _start(self, peer: Peer, keys: list[str]) -> None:
        """Measures one program alone on the machine."""

        def measure(attempt: int) -> dict[str, float]:
            try:
                seconds = peer.start()
                time.sleep(1.0)  # its memory includes the work right after the start
                found = {"start": seconds, "memory": procfs.tree_resident_mib(peer.pid)}
            finally:
                peer.stop()
            return {key: found[key] for key in keys}

        self._undisturbed(measure, peer)

    def _work(self, work: Work, peer: Peer, number: int) -> None:
        """Measures one program while the others idle."""
        others = [other for other in self.peers if other is not peer]

        def measure(attempt: int) -> dict[str, float]:
            prompts = [work.prompts(self.vocab, f"{number}.{attempt}.{i}") for i in range(work.repeats)]
            before = {other.name: procfs.tree_cpu_seconds(other.pid) for other in others}
            start = time.monotonic()
            value = statistics.median(work.value(peer.generate(prompt, work.tokens)) for prompt in prompts)
            for other in others:
                spent = self.results.idle[other.name]
                spent[0] += procfs.tree_cpu_seconds(other.pid) - before[other.name]
                spent[1] += time.monotonic() - start
            return {work.key: value}

        self._undisturbed(measure, peer)


def turned(peers: list[Peer], number: int) -> list[Peer]:
    """Each round begins with another program."""
    first = number % len(peers)
    return peers[first:] + peers[:first]
