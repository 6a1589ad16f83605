"""The journal of the front: what it must know of every request to go on with it after the front's own death.

A record holds frames, each a letter and MessagePack. A request: H (RequestHead), then T (when its prefill began, and
when its first token came), E (events that its consumer was going to see), P (prompt logprobs), S (its consumer left:
not to be submitted until it is back), R (it is back), D (a front died with it; the epoch that its death led to). An
image file has a record of its own, F, that all its requests share.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import EventCursor, LiveRequest, Relay, RequestOwner, decode_events
from lightllm_mp.actors.topology import HTTP
from lightllm_mp.messages import Generate, ImageInfo, PromptLogprobs
from lightllm_mp.shm import Journal

log = logging.getLogger(__name__)


class RequestHead(Struct, frozen=True, array_like=True):
    """What is known of a request when it is accepted."""

    request: Generate
    stream: bool
    label: str
    form: bytes
    deadline: float | None
    """Monotonic; the clock is the machine's, so a deadline outlives the process."""
    keep: float = 0.0
    started: float = 0.0
    """Monotonic, too."""

    @property
    def most(self) -> float:
        """The deadline; infinite: none."""
        return math.inf if self.deadline is None else self.deadline


class ImageFile(Struct, frozen=True, array_like=True):
    image: ImageInfo
    data: bytes


def decode_head(frame: bytes) -> RequestHead:
    """Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(frame[1:], type=RequestHead)


def read_record(frames: Sequence[bytes]) -> tuple[RequestHead, dict[bytes, Upload], list[bytes]]:
    """The head, the images by their keys, and the other frames of a record that was relayed. Raises msgspec.DecodeError
    or IndexError."""
    files, heads, rest = dict[bytes, Upload](), list[RequestHead](), list[bytes]()
    for frame in frames:
        match frame[:1]:
            case b"F":
                file = msgspec.msgpack.decode(frame[1:], type=ImageFile)
                files[file.image.key] = Upload(file.image, file.data)
            case b"H":
                heads.append(decode_head(frame))
            case _:
                rest.append(frame)
    return heads[-1], files, rest


def put_frame(live: LiveRequest, frame: bytes) -> None:
    """Add to `live` what a frame T, E or P of its record says. Raises msgspec.DecodeError or IndexError."""
    match frame[:1]:
        case b"T":
            live.scheduled, live.first = msgspec.msgpack.decode(frame[1:], type=tuple[float, float])
        case b"E":
            for event in decode_events(frame[1:]):
                live.put(live.answers[event.index], event)
        case b"P":
            live.prompt_logprobs.append(msgspec.msgpack.decode(frame[1:], type=PromptLogprobs))


def _head(live: LiveRequest) -> RequestHead:
    deadline = live.deadline if live.deadline < math.inf else None
    return RequestHead(live.request, live.stream, live.label, live.form, deadline, live.keep, live.started)


@dataclass(slots=True)
class _File:
    number: int
    requests: int = 0


class NoJournal:
    """Records nothing: the front of an embedded engine ends with its program."""

    used = incomplete = 0
    deaths: tuple[int, ...] = ()

    def add(self, live: LiveRequest) -> None: ...
    def relay_all(self, live: LiveRequest, relay: Relay | None) -> None: ...
    def events(self, live: LiveRequest) -> None: ...
    def seen(self, live: LiveRequest, first: int, data: bytes) -> None: ...
    def prompt(self, live: LiveRequest) -> None: ...
    def suspended(self, live: LiveRequest, suspended: bool) -> None: ...
    def remove(self, live: LiveRequest) -> None: ...
    def recover(self, owner: RequestOwner, epoch: int) -> list[tuple[LiveRequest, bool]]:
        return []


class RequestJournal:
    """A request whose record does not fit goes on without one: only the front's death would lose it.

    `make_room` frees records that no consumer waits for; it returns False if there are none.
    """

    def __init__(self, journal: Journal, make_room: Callable[[], bool] = lambda: False) -> None:
        self._journal = journal
        self.make_room = make_room
        self._files: dict[bytes, _File] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self.incomplete = 0
        """Requests that went on without a record, ever."""
        self.deaths: set[int] = set()
        """The epochs that the deaths of fronts before the last one led to, each since the last token of a request that
        `recover` found."""

    @property
    def used(self) -> int:
        """Bytes."""
        return self._journal.used

    def add(self, live: LiveRequest) -> None:
        """Start the record of a request, and of its images."""
        head = _head(live)
        if live.relay is not None:
            self._relay_head(live, head, live.relay)
        for upload in {upload.key: upload for upload in live.images}.values():
            file = self._files.get(upload.key)
            if file is None:
                number = self._add(b"F", ImageFile(upload.image, upload.data))
                if number is None:
                    self._without(live)
                    return
                file = self._files[upload.key] = _File(number)
            file.requests += 1
        live.number = self._add(b"H", head)
        if live.number is None:
            self._release(live)
            self._without(live)

    def relay_all(self, live: LiveRequest, relay: Relay | None) -> None:
        """Relay the record of a request as it stands, to whoever does not have it yet."""
        if relay is None:
            return
        self._relay_head(live, _head(live), relay)
        if live.order:
            relay(self._times(live))
            for events in EventCursor(live.answers, live.order).pieces():
                relay(b"E" + events)
        for piece in live.prompt_logprobs:
            relay(b"P" + self._encode(piece))

    def events(self, live: LiveRequest) -> None:
        """Record all events of the request."""
        if self._records(live) and live.recorded.at < len(live.order):
            self._timed(live)
            self._append(live, b"E" + live.recorded.take(len(live.order)))

    def seen(self, live: LiveRequest, first: int, data: bytes) -> None:
        """Record these events (an encoded array; the first has this number) before its consumer sees them."""
        if self._records(live) and live.recorded.at == first:
            self._timed(live)
            live.recorded.skip(live.taken)
            self._append(live, b"E" + data)
        elif live.recorded.at < live.taken:
            self.events(live)

    def _timed(self, live: LiveRequest) -> None:
        """Record the times of its first event, before that."""
        if not live.recorded.at:
            self._append(live, self._times(live))

    def prompt(self, live: LiveRequest) -> None:
        """Record its prompt logprobs, once all pieces have come."""
        for piece in live.prompt_logprobs:
            self._append(live, b"P" + self._encode(piece))

    def suspended(self, live: LiveRequest, suspended: bool) -> None:
        self._store(live, b"S" if suspended else b"R")

    def remove(self, live: LiveRequest) -> None:
        if live.number is not None:
            self._journal.remove(live.number)
            live.number = None
            self._release(live)

    def recover(self, owner: RequestOwner, epoch: int) -> list[tuple[LiveRequest, bool]]:
        """The requests that the last front left, and whether each was suspended. Call it once, first. `epoch`: what its
        death led to."""
        files: dict[bytes, Upload] = {}
        heads: list[tuple[int, list[bytes]]] = []
        for number, frames in self._journal.records():
            if frames[0][:1] == b"F":
                file = msgspec.msgpack.decode(frames[0][1:], type=ImageFile)
                files[file.image.key] = Upload(file.image, file.data)
                self._files[file.image.key] = _File(number)
            else:
                heads.append((number, frames))
        found: list[tuple[LiveRequest, bool]] = []
        for number, frames in heads:
            try:
                found.append(self._rebuilt(owner, epoch, number, frames, files))
            except (msgspec.DecodeError, KeyError, IndexError) as error:
                log.error("a request's record is damaged and dropped: %s", error)
                self._journal.remove(number)
        for key in [key for key, file in self._files.items() if not file.requests]:
            self._journal.remove(self._files.pop(key).number)
        return sorted(found, key=lambda pair: pair[0].rid)

    def _rebuilt(
        self, owner: RequestOwner, epoch: int, number: int, frames: list[bytes], files: dict[bytes, Upload]
    ) -> tuple[LiveRequest, bool]:
        head = decode_head(frames[0])
        images = tuple(files[image.key] for image in head.request.images)
        live = LiveRequest(head.request, owner, head.stream, images, head.most, head.label, head.form, head.keep)
        live.started = head.started
        suspended, deaths = False, list[int]()
        for frame in frames[1:]:
            match frame[:1]:
                case b"E":
                    deaths.clear()
                    put_frame(live, frame)
                case b"D":
                    deaths.append(msgspec.msgpack.decode(frame[1:], type=int))
                case b"T" | b"P":
                    put_frame(live, frame)
                case kind:
                    suspended = kind == b"S"
        live.recorded.take(len(live.order))
        live.attached, live.number = False, number
        for key in {image.key for image in head.request.images}:
            self._files[key].requests += 1
        if live.open and not suspended:
            live.fruitless, live.blamed = len(deaths) + 1, frozenset({HTTP})
            self.deaths.update(deaths)
            self._store(live, b"D" + self._encode(epoch))
        return live, suspended

    def _add(self, kind: bytes, content: Struct) -> int | None:
        frame = kind + self._encode(content)
        while (number := self._journal.add(frame)) is None:
            if not self.make_room():
                return None
        return number

    def _records(self, live: LiveRequest) -> bool:
        return live.number is not None or live.relay is not None

    def _times(self, live: LiveRequest) -> bytes:
        return b"T" + self._encode((live.scheduled, live.first))

    def _relay_head(self, live: LiveRequest, head: RequestHead, relay: Relay) -> None:
        for upload in {upload.key: upload for upload in live.images}.values():
            relay(b"F" + self._encode(ImageFile(upload.image, upload.data)))
        relay(b"H" + self._encode(head))

    def _append(self, live: LiveRequest, frame: bytes) -> None:
        """Record a frame that another engine needs, too."""
        if live.relay is not None:
            live.relay(frame)
        self._store(live, frame)

    def _store(self, live: LiveRequest, frame: bytes) -> None:
        while live.number is not None and not self._journal.append(live.number, frame):
            if not self.make_room():
                self.remove(live)
                self._without(live)

    def _without(self, live: LiveRequest) -> None:
        if not self.incomplete:
            log.warning("the journal is full: requests go on, but a death of http would lose them (--journal-size)")
        self.incomplete += 1

    def _release(self, live: LiveRequest) -> None:
        for key in {image.key for image in live.request.images}:
            file = self._files[key]
            file.requests -= 1
            if not file.requests:
                self._journal.remove(self._files.pop(key).number)
