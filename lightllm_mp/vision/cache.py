"""Bookkeeping of the image cache: which embeddings are kept, and which requests lease them. Imports no torch.

Legal states of an image::

    ABSENT --granted to a request--> FILLING --ready--> READY --least recently used, unleased--> ABSENT
                                     FILLING --fail--> ABSENT

A request asks for all its images at once and gets all of them at once, in the order of asking, so no two requests can
block each other with a part of their images. Granted images are leased until `release`. A request for a FILLING image
waits for the same encoding as the others. Only READY images without a lease are evicted.

A request that needs no new space may overtake the first one that waits for space, at most OVERTAKES times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import Any, NamedTuple, Protocol

OVERTAKES = 32
"""Requests that may overtake the same one."""


class BlockStore(Protocol):
    """The source of memory blocks (shm/arena.py)."""

    capacity: int

    @property
    def used(self) -> int: ...
    def footprint(self, n: int, /) -> int: ...
    def alloc(self, n: int, /) -> Any: ...
    def free(self, block: Any, /) -> None: ...


class WantedImage(NamedTuple):
    """An image of a request: `rows` embeddings in `nbytes`."""

    key: bytes
    rows: int
    nbytes: int


class LeaseGrant(NamedTuple):
    """A request that now has its leases. `missing`: those of its images that were ABSENT and are now FILLING."""

    rid: int
    missing: tuple[WantedImage, ...]


@dataclass(slots=True)
class CachedImage:
    """An image that is FILLING or READY."""

    wanted: WantedImage
    block: Any
    ready: bool = False
    leases: int = 0
    waiters: list[int] = field(default_factory=list)
    """Requests that wait until it is READY."""
    since: float = field(default_factory=monotonic)
    """When it was asked for first, in seconds."""


@dataclass(slots=True)
class CacheCounts:
    """Counts of images; `refusals` counts requests."""

    hits: int = 0
    joins: int = 0
    misses: int = 0
    evictions: int = 0
    refusals: int = 0


class ImageCache:
    def __init__(self, capacity: int, store: BlockStore) -> None:
        self.capacity = capacity
        self.counts = CacheCounts()
        self._store = store
        self._entries: dict[bytes, CachedImage] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        """READY images without a lease, the least recently used first."""
        self._queue: OrderedDict[int, tuple[WantedImage, ...]] = OrderedDict()
        self._held: dict[int, tuple[bytes, ...]] = {}
        self._lacking: dict[int, int] = {}
        """Number of FILLING images of each granted request."""
        self._overtaken = 0

    @property
    def items(self) -> int:
        return len(self._entries)

    @property
    def leased(self) -> int:
        """Number of leased images."""
        return sum(entry.leases > 0 for entry in self._entries.values())

    @property
    def waiting(self) -> int:
        """Number of requests that wait for space."""
        return len(self._queue)

    @property
    def granted(self) -> int:
        """Number of requests that hold leases."""
        return len(self._held)

    def entry(self, key: bytes) -> CachedImage | None:
        return self._entries.get(key)

    def newest(self, most: int) -> list[CachedImage]:
        """At most so many images, those that were asked for last first."""
        return list(islice(reversed(self._entries.values()), most))

    def fits(self, wanted: Iterable[WantedImage]) -> bool:
        """Whether an empty cache could hold all these images."""
        images = {image.key: image for image in wanted}.values()
        size = sum(self._store.footprint(image.nbytes) for image in images)
        return len(images) <= self.capacity and size <= self._store.capacity

    def ask(self, rid: int, wanted: Sequence[WantedImage]) -> bool:
        """Joins the queue. False, and no change: the request can never be granted, or is already known."""
        images = tuple({image.key: image for image in wanted}.values())
        if rid in self._queue or rid in self._held or not self.fits(images):
            self.counts.refusals += 1
            return False
        self._queue[rid] = images
        return True

    def grant(self) -> list[LeaseGrant]:
        """Grants the requests that can have all their images now."""
        granted: list[LeaseGrant] = []
        while self._queue:
            rid, images = next(iter(self._queue.items()))
            missing = self._take(rid, images)
            if missing is None and not self._held:
                # Its READY images fragment the free space: evict them and encode all again.
                while self._idle:
                    self._evict()
                missing = self._take(rid, images)
            if missing is None:
                break
            self._overtaken = 0
            granted.append(LeaseGrant(rid, missing))
        return granted + self._overtaking()

    def complete(self, rid: int) -> bool:
        """Whether all images of a granted request are READY."""
        return rid in self._held and not self._lacking.get(rid)

    def images(self, rid: int) -> list[CachedImage]:
        """The images of a granted request."""
        return [self._entries[key] for key in self._held[rid]]

    def ready(self, key: bytes) -> list[int]:
        """FILLING -> READY. Returns the requests that it completes."""
        entry = self._entries[key]
        entry.ready = True
        waiters, entry.waiters = entry.waiters, []
        for rid in waiters:
            self._lacking[rid] -= 1
        if not entry.leases:
            self._idle[key] = None
        return [rid for rid in waiters if not self._lacking[rid]]

    def fail(self, key: bytes) -> list[int]:
        """FILLING -> ABSENT. Returns the requests that waited for it; they lose all their leases."""
        waiters = list(self._entries[key].waiters)
        for rid in waiters:
            self.release(rid)
        self._remove(key)
        return waiters

    def release(self, rid: int) -> list[bytes]:
        """Ends a request, granted, queued or unknown. Returns the keys that are FILLING without a request."""
        if self._queue.pop(rid, None) is not None:
            return []
        orphans = []
        lacking = self._lacking.pop(rid, 0)
        for key in self._held.pop(rid, ()):
            entry = self._entries[key]
            entry.leases -= 1
            if lacking and rid in entry.waiters:
                entry.waiters.remove(rid)
            if entry.leases:
                continue
            if entry.ready:
                self._idle[key] = None
            else:
                orphans.append(key)
        return orphans

    def release_all(self) -> None:
        """Forgets all requests and keeps the images."""
        for rid in [*self._queue, *self._held]:
            self.release(rid)
        self._overtaken = 0

    def _overtaking(self) -> list[LeaseGrant]:
        """Grants requests behind the first one that need no space."""
        granted = []
        for rid, images in list(self._queue.items())[1:]:
            if self._overtaken >= OVERTAKES:
                break
            if all(image.key in self._entries for image in images) and self._take(rid, images) is not None:
                self._overtaken += 1
                granted.append(LeaseGrant(rid, ()))
        return granted

    def _take(self, rid: int, images: tuple[WantedImage, ...]) -> tuple[WantedImage, ...] | None:
        """Leases all `images`, with space for the missing ones, which it returns. None: not now, and nothing
        changed."""
        present = [image.key for image in images if image.key in self._entries]
        missing = tuple(image for image in images if image.key not in self._entries)
        for key in present:  # so that they are not evicted to make space for the others
            self._idle.pop(key, None)
        blocks = self._space(missing)
        if blocks is None:
            for key in present:
                entry = self._entries[key]
                if entry.ready and not entry.leases:
                    self._idle[key] = None
            return None
        for image, block in zip(missing, blocks, strict=True):
            self._entries[image.key] = CachedImage(image, block)
        del self._queue[rid]
        self._hold(rid, images, len(missing))
        return missing

    def _hold(self, rid: int, images: tuple[WantedImage, ...], missing: int) -> None:
        self._held[rid] = tuple(image.key for image in images)
        entries = [self._entries[image.key] for image in images]
        for entry in entries:
            entry.leases += 1
            if not entry.ready:
                entry.waiters.append(rid)
        lacking = self._lacking[rid] = sum(not entry.ready for entry in entries)
        self.counts.hits += len(images) - lacking
        self.counts.joins += lacking - missing
        self.counts.misses += missing

    def _space(self, missing: tuple[WantedImage, ...]) -> list[Any] | None:
        """Blocks for `missing`, within the cache's capacity. None, and nothing taken: leased images leave no space."""
        store = self._store
        surplus = len(self._entries) + len(missing) - self.capacity
        idle = sum(store.footprint(self._entries[key].wanted.nbytes) for key in self._idle)
        needed = sum(store.footprint(image.nbytes) for image in missing)
        if surplus > len(self._idle) or needed > store.capacity - store.used + idle:
            return None
        for _ in range(surplus):
            self._evict()
        blocks: list[Any] = []
        for image in missing:
            while (block := store.alloc(image.nbytes)) is None and self._idle:
                self._evict()
            if block is None:  # the free space is fragmented
                for taken in blocks:
                    store.free(taken)
                return None
            blocks.append(block)
        return blocks

    def _evict(self) -> None:
        key, _ = self._idle.popitem(last=False)
        self._remove(key)
        self.counts.evictions += 1

    def _remove(self, key: bytes) -> None:
        self._store.free(self._entries.pop(key).block)
