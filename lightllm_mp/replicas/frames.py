"""Reads the frames of a relayed answer (actors/http/relayed_answer.py) and collects the record of its request."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from lightllm_mp.actors.front.request_journal import decode_head

HEAD, BODY, END, ALIVE, REQUEST, FILE, EVENTS = b"R", b"B", b"Z", b"K", b"H", b"F", b"E"
"""A replica sends ALIVE while its engine has no other frame to send."""
_FRAME, _EVENTS, _STATUS = struct.Struct("<cI"), struct.Struct("<I"), struct.Struct("<H")


class Head(Struct, frozen=True):
    """The status and headers of an answer."""

    status: int
    headers: dict[str, str]

    @property
    def streamed(self) -> bool:
        """Events go to the client at once; any other body goes as a whole."""
        return self.headers.get("Content-Type", "").startswith("text/event-stream")


class FrameReader:
    """Splits pieces of bytes into frames: one byte of kind, then the payload."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        self._rest += piece
        at = 0
        while len(self._rest) - at >= _FRAME.size:
            kind, length = _FRAME.unpack_from(self._rest, at)
            end = at + _FRAME.size + length
            if len(self._rest) < end:
                break
            yield kind + bytes(self._rest[at + _FRAME.size : end])
            at = end
        del self._rest[:at]


def framed(*frames: bytes) -> bytes:
    return b"".join(_FRAME.pack(frame[:1], len(frame) - 1) + frame[1:] for frame in frames)


def head(frame: bytes) -> Head:
    return Head(_STATUS.unpack_from(frame, 1)[0], msgspec.json.decode(frame[3:], type=dict[str, str]))


def body(frame: bytes) -> tuple[int, bytes]:
    """(events that the client has received after this frame, bytes of the body)"""
    return _EVENTS.unpack_from(frame, 1)[0], frame[5:]


class Record:
    """What another engine needs to continue a request. False if the engine has not begun the request."""

    def __init__(self) -> None:
        self._files: list[bytes] = []
        self._frames: list[bytes] = []

    def add(self, frame: bytes) -> None:
        """Add a frame. A head restarts the record; the files of its images come before it."""
        if frame[:1] == FILE:
            self._files.append(frame)
        elif frame[:1] == REQUEST:
            self._frames = [*self._files, frame]
            self._files = []
        else:
            self._frames.append(frame)

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def keep(self) -> float:
        """Seconds for which the engine stores the answer; 0 if it is not stored."""
        head = next((frame for frame in self._frames if frame[:1] == REQUEST), None)
        return decode_head(head).keep if head is not None else 0.0

    def framed(self) -> bytes:
        return framed(*self._frames)
