"""Prefix-aware routing: a request goes to the replica that has the least work before the request's first token.

The cost of a request at a replica is the work that waits there plus the part of the prompt that is not cached there.
The router compares the replicas that hold the longest prefix of the prompt or most of its images, and two random ones.
So a request goes where its prefix or image is cached, unless that replica is busier by more than the cache saves. Then
another replica answers it and caches its prefix, so a hot prefix spreads as far as its load needs.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from lightllm_mp.replicas.footprint import BLOCK, BYTES_PER_TOKEN, IMAGE_TOKENS, Footprint

BLOCK_TOKENS = BLOCK // BYTES_PER_TOKEN
ANSWER_WEIGHT = 2.0
"""The work of an answer's token, in prompt tokens. Its step computes one token of this answer, batched with others."""


@dataclass
class Replica:
    """What a front knows of a replica. `blocks`, `images`: digests that it may hold, the most recently used last."""

    most_blocks: int
    most_images: int
    work: float = 0.0
    """Tokens that the replica still has to compute for this front."""
    reported: float = 0.0
    """Tokens that it has to compute for other fronts, by its last report."""
    accepting: bool = True
    """False while the replica drains or starts."""
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)
    images: OrderedDict[int, None] = field(default_factory=OrderedDict)


class ReplicaRouter:
    """Chooses among replicas by name. Not thread-safe."""

    def __init__(self, seed: int | None = None) -> None:
        self.replicas: dict[str, Replica] = {}
        self._names: list[str] = []
        """Names of replicas that accept requests."""
        self._holders: dict[int, set[str]] = {}
        """Digest -> names of replicas that hold it."""
        self._random = random.Random(seed)

    # --- replicas ---

    def join(self, name: str, *, kv_tokens: int, images: int = 0) -> None:
        """Add a replica with `kv_tokens` KV slots and a cache of `images` images."""
        self.leave(name)
        self.replicas[name] = Replica(max(1, kv_tokens // BLOCK_TOKENS), images)
        self._names.append(name)

    def leave(self, name: str) -> None:
        """Remove a replica and what is known of its caches."""
        if (replica := self.replicas.pop(name, None)) is not None:
            self._drop(name, (*replica.blocks, *replica.images))
            self._names = [other for other in self._names if other != name]

    def accept(self, name: str, accepting: bool) -> None:
        """Set whether the replica gets requests. One that drains or starts gets none and keeps its caches."""
        self.replicas[name].accepting = accepting
        self._names = [name for name, replica in self.replicas.items() if replica.accepting]

    def accepts(self, name: str) -> bool:
        """Whether the replica is known and takes requests."""
        replica = self.replicas.get(name)
        return replica is not None and replica.accepting

    def report(self, name: str, *, work: float, held: Iterable[Footprint] = ()) -> None:
        """A replica's report: its work for other fronts, and what they have sent it since the last report."""
        if (replica := self.replicas.get(name)) is not None:
            replica.reported = work
            for footprint in held:
                self._hold(name, footprint)

    # --- requests ---

    def choose(self, footprint: Footprint, *, without: Collection[str] = ()) -> str | None:
        """The replica for a request; None if no replica accepts it. `without`: replicas that it has tried."""
        names = [name for name in self._names if name not in without] if without else self._names
        if not names:
            return None
        candidates = dict.fromkeys(self._knowing(footprint, names) if len(names) > 2 else ())
        candidates |= dict.fromkeys(self._random.sample(names, min(2, len(names))))
        return min(candidates, key=lambda name: self.cost(name, footprint))

    def cost(self, name: str, footprint: Footprint) -> float:
        """Tokens that the replica computes before the request's first one."""
        replica = self.replicas[name]
        return replica.work + replica.reported + footprint.prompt_tokens - self.saved(name, footprint)

    def saved(self, name: str, footprint: Footprint) -> int:
        """Prompt tokens that the replica's caches save."""
        replica = self.replicas[name]
        known = next((i for i in range(len(footprint.blocks), 0, -1) if footprint.blocks[i - 1] in replica.blocks), 0)
        images = sum(image in replica.images for image in footprint.images)
        return min(BLOCK_TOKENS * known + IMAGE_TOKENS * images, footprint.prompt_tokens)

    def sent(self, name: str, footprint: Footprint) -> float:
        """Count a request that was sent to the replica. Returns its work, for `done`."""
        replica = self.replicas[name]
        work = footprint.prompt_tokens - self.saved(name, footprint) + ANSWER_WEIGHT * footprint.answer_tokens
        replica.work += work
        self._hold(name, footprint)
        return work

    def done(self, name: str, work: float) -> None:
        """Subtract work that the replica has finished or that was cancelled."""
        if (replica := self.replicas.get(name)) is not None:
            replica.work = max(0.0, replica.work - work)

    # --- internals ---

    def _knowing(self, footprint: Footprint, names: list[str]) -> list[str]:
        """Up to two replicas that hold the longest prefix of the prompt, and up to two that have most of its images."""
        found = list[str]()
        for block in reversed(footprint.blocks):
            if holders := self._accepting(self._holders.get(block, ()), names):
                found += self._few(holders)
                break
        images = Counter(name for image in footprint.images for name in self._holders.get(image, ()))
        if holders := self._accepting(images, names):
            most = max(images[name] for name in holders)
            found += self._few([name for name in holders if images[name] == most])
        return found

    def _accepting(self, holders: Iterable[str], names: list[str]) -> list[str]:
        allowed = self.replicas if names is self._names else set(names)
        return [name for name in holders if name in allowed and self.replicas[name].accepting]

    def _few(self, holders: list[str]) -> list[str]:
        """The two with the least work of at most 8 sampled holders: a hot prefix may have many."""
        some = self._random.sample(holders, 8) if len(holders) > 8 else holders
        return sorted(some, key=lambda name: self.replicas[name].work + self.replicas[name].reported)[:2]

    def _hold(self, name: str, footprint: Footprint) -> None:
        replica = self.replicas[name]
        for digest in reversed(footprint.blocks):  # the first block is touched last, so the end is evicted first
            self._touch(name, replica.blocks, digest, replica.most_blocks)
        for digest in footprint.images:
            self._touch(name, replica.images, digest, replica.most_images)

    def _touch(self, name: str, held: OrderedDict[int, None], digest: int, most: int) -> None:
        if digest in held:
            held.move_to_end(digest)
            return
        if not most:
            return
        held[digest] = None
        self._holders.setdefault(digest, set()).add(name)
        while len(held) > most:
            self._drop(name, (held.popitem(last=False)[0],))

    def _drop(self, name: str, digests: Iterable[int]) -> None:
        for digest in digests:
            holders = self._holders.get(digest, set())
            holders.discard(name)
            if not holders:
                self._holders.pop(digest, None)
