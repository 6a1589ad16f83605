"""Simulates a fleet of replicas and compares the real routing with simpler ones.

    python -m tools.bench.replica_routing [--replicas 4,32,1000] [--requests 100000] [--fronts 4] [--report-seconds 2]

Three traces: chats of several turns, questions behind a few long system prompts, questions about popular images. A
replica prefills what its LRU caches lack, one prompt after another, and decodes meanwhile; its rates are those
of Llama-3-8B on one H200 (docs/performance.md). Requests come at a rate that keeps 80 % of all replicas prefilling if
nothing is cached. Each of several fronts knows its own requests, and those of other fronts from the replicas' reports.
Prints for each routing the share of cached prompt tokens, the time to the first token, and the busiest replica's work
over the mean.
"""

from __future__ import annotations

import heapq
import random
import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from lightllm_mp.replicas.footprint import IMAGE_TOKENS, Footprint
from lightllm_mp.replicas.routing import BLOCK_TOKENS, ReplicaRouter
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures

PREFILL, GAP, GAP_OF_ONE = 43_400.0, 4.3e-3, 4.3e-5
"""Tokens a second; seconds between two tokens of an answer, and what each other answer adds."""
KV_TOKENS, IMAGES = 930_000, 1000
LOAD = 0.8
POLICIES = ("round robin", "random", "two choices", "prefix and load")


@dataclass(order=True)
class Arrival:
    time: float
    number: int
    footprint: Footprint = field(compare=False)
    then: Callable[[float], Arrival] | None = field(compare=False, default=None)
    """Makes the next turn of the conversation, after the end of this answer."""


@dataclass
class SimulatedReplica:
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)
    images: OrderedDict[int, None] = field(default_factory=OrderedDict)
    free: float = 0.0
    """The time at which the last waiting prompt is prefilled."""
    computed: float = 0.0
    ends: list[float] = field(default_factory=list)
    news: list[tuple[int, Footprint]] = field(default_factory=list)
    """(front, its requests) since the last report."""

    def answer(self, now: float, asked: Footprint) -> tuple[float, float, int]:
        """Times of the first and the last token, and the number of cached prompt tokens."""
        known = next((i for i in range(len(asked.blocks), 0, -1) if asked.blocks[i - 1] in self.blocks), 0)
        hit = known * BLOCK_TOKENS + IMAGE_TOKENS * sum(image in self.images for image in asked.images)
        hit = min(hit, asked.prompt_tokens)
        for digest in reversed(asked.blocks):
            _use(self.blocks, digest, KV_TOKENS // BLOCK_TOKENS)
        for digest in asked.images:
            _use(self.images, digest, IMAGES)
        self.free = max(now, self.free) + (asked.prompt_tokens - hit) / PREFILL
        self.computed += asked.prompt_tokens - hit
        while self.ends and self.ends[0] <= self.free:
            heapq.heappop(self.ends)
        end = self.free + asked.answer_tokens * (GAP + GAP_OF_ONE * len(self.ends))
        heapq.heappush(self.ends, end)
        return self.free, end, hit


def _use(held: OrderedDict[int, None], digest: int, most: int) -> None:
    held[digest] = None
    held.move_to_end(digest)
    if len(held) > most:
        held.popitem(last=False)


# --- traces -----------------------------------------------------------------------------------------------------------


def zipf(chance: random.Random, most: int) -> int:
    """A random item; 0 is the most popular."""
    return int(most ** chance.random()) - 1


def text(*parts: tuple[object, int], images: tuple[int, ...] = (), answer: int = 200) -> Footprint:
    """A prompt of parts (name, tokens): equal names in equal places are equal text."""
    total, blocks, seen = 0, list[int](), 0
    for name, tokens in parts:
        seen = hash((seen, name))
        blocks += (hash((seen, i)) for i in range(total // BLOCK_TOKENS, (total + tokens) // BLOCK_TOKENS))
        total += tokens
    return Footprint(tuple(blocks), images, total + IMAGE_TOKENS * len(images), answer)


def chats(chance: random.Random) -> Iterator[Callable[[float], Arrival]]:
    for session in count():
        yield _turn(chance, ((f"system {zipf(chance, 10)}", 800),), session, 0)


def _turn(
    chance: random.Random, before: tuple[tuple[object, int], ...], session: int, number: int
) -> Callable[[float], Arrival]:
    said = (*before, ((session, number), chance.randrange(40, 400)))

    def at(time: float) -> Arrival:
        more = chance.random() < 0.8
        following = _turn(chance, (*said, ((session, number, "answer"), 200)), session, number + 1)
        wait = chance.expovariate(1 / 15)
        return Arrival(time, 0, text(*said), (lambda end: following(end + wait)) if more else None)

    return at


def shared_prompts(chance: random.Random) -> Iterator[Callable[[float], Arrival]]:
    for number in count():
        asked = text((zipf(chance, 200), 3000), (("question", number), chance.randrange(20, 200)))
        yield lambda time, asked=asked: Arrival(time, 0, asked)  # type: ignore[misc]


def shared_images(chance: random.Random) -> Iterator[Callable[[float], Arrival]]:
    for number in count():
        asked = text((("question", number), chance.randrange(20, 100)), images=(zipf(chance, 20_000),), answer=60)
        yield lambda time, asked=asked: Arrival(time, 0, asked)  # type: ignore[misc]


TRACES = {"chat turns": chats, "shared system prompts": shared_prompts, "images": shared_images}
MEAN_PROMPT = {"chat turns": 2600, "shared system prompts": 3110, "images": 636}
"""Tokens of all prompts, which give the rate of arrivals."""


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    hit_rate: float
    first_token: list[float]
    imbalance: float


def simulate(trace: str, policy: str, replicas: int, requests: int, fronts: int, report_seconds: float) -> Outcome:
    chance = random.Random(f"{trace} {replicas}")
    new = TRACES[trace](chance)
    rate = LOAD * replicas * PREFILL / MEAN_PROMPT[trace] / (4.0 if trace == "chat turns" else 1.0)
    fleet = [SimulatedReplica() for _ in range(replicas)]
    routers = [ReplicaRouter(seed) for seed in range(fronts)]
    for router in routers:
        for i in range(replicas):
            router.join(str(i), kv_tokens=KV_TOKENS, images=IMAGES)
    numbers, ends = count(), list[tuple[float, int, str, float]]()
    arrivals: list[Arrival] = []
    clock, report, prompts, hits, first = 0.0, report_seconds, 0, 0, list[float]()
    upcoming = next(new)(0.0)
    for number in range(requests):
        if not arrivals or upcoming.time <= arrivals[0].time:
            arrival, clock = upcoming, upcoming.time
            upcoming = next(new)(clock + chance.expovariate(rate))
        else:
            arrival = heapq.heappop(arrivals)
        now, asked = arrival.time, arrival.footprint
        while ends and ends[0][0] <= now:
            _, front, name, work = heapq.heappop(ends)
            routers[front].done(name, work)
        if now >= report and policy == "prefix and load" and fronts > 1:
            report = now + report_seconds
            _report(fleet, routers, now)
        front = number % fronts
        router, work = routers[front], 0.0
        match policy:
            case "round robin":
                chosen = number % replicas
            case "random":
                chosen = chance.randrange(replicas)
            case "two choices":
                two = chance.sample(range(replicas), min(2, replicas))
                chosen = min(two, key=lambda i: router.replicas[str(i)].work)
                work = float(asked.prompt_tokens + asked.answer_tokens)
                router.replicas[str(chosen)].work += work
            case _:
                best = router.choose(asked)
                assert best is not None
                chosen, work = int(best), router.sent(best, asked)
                if fronts > 1:
                    fleet[chosen].news.append((front, asked))
        begin, end, hit = fleet[chosen].answer(now, asked)
        heapq.heappush(ends, (end, front, str(chosen), work))
        prompts, hits = prompts + asked.prompt_tokens, hits + hit
        first.append(begin - now)
        if arrival.then is not None:
            following = arrival.then(end)
            following.number = next(numbers)
            heapq.heappush(arrivals, following)
    computed = [replica.computed for replica in fleet]
    return Outcome(hits / prompts, sorted(first), max(computed) / (sum(computed) / replicas))


def _report(fleet: list[SimulatedReplica], routers: list[ReplicaRouter], now: float) -> None:
    for i, replica in enumerate(fleet):
        waits = max(0.0, replica.free - now) * PREFILL
        for front, router in enumerate(routers):
            theirs = [asked for sender, asked in replica.news if sender != front]
            router.report(str(i), work=waits * (len(routers) - 1) / len(routers), held=theirs)
        replica.news = []


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, replicas=["3"], requests=300)
    parser.add_argument("--replicas", type=words, default=["4", "32", "1000"])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--fronts", type=int, default=4)
    parser.add_argument("--report-seconds", type=float, default=2.0)
    flags = parser.parse(argv)
    figures = Figures()
    for trace in TRACES:
        for replicas in map(int, flags.replicas):
            for policy in POLICIES:
                found = simulate(trace, policy, replicas, flags.requests, flags.fronts, flags.report_seconds)
                name = f"{trace}, {replicas} replicas, {policy}: "
                figures.add(name + "prompt tokens from a cache", 100 * found.hit_rate, "%")
                figures.add(name + "first token, median", 1e3 * statistics.median(found.first_token), "ms")
                figures.add(
                    name + "first token, 99 %", 1e3 * found.first_token[int(0.99 * len(found.first_token))], "ms"
                )
                figures.add(name + "busiest replica to the mean", found.imbalance)
    figures.table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
