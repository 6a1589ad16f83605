"""Reads the frames of a relayed answer (actors/http/relayed_answer.py), and keeps the record of its request."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from lightllm_mp.actors.front.request_journal import decode_head

HEAD, BODY, END, ALIVE, REQUEST, FILE, EVENTS = b"R", b"B", b"Z", b"K", b"H", b"F", b"E"
"""ALIVE comes from a replica whose engine says nothing for a while."""
_FRAME, _EVENTS, _STATUS = struct.Struct("<cI"), struct.Struct("<I"), struct.Struct("<H")


class Head(Struct, frozen=True):
    """Of an answer."""

    status: int
    headers: dict[str, str]

    @property
    def streamed(self) -> bool:
        """Its events are for the client at once; any other body is one thing."""
        return self.headers.get("Content-Type", "").startswith("text/event-stream")


class FrameReader:
    """Splits pieces of bytes into frames, each its kind and payload."""

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
    """(events that the client has after it, bytes)"""
    return _EVENTS.unpack_from(frame, 1)[0], frame[5:]


class Record:
    """What another engine needs to go on with a request. False: the engine has not begun it."""

    def __init__(self) -> None:
        self._files: list[bytes] = []
        self._frames: list[bytes] = []

    def add(self, frame: bytes) -> None:
        """A frame of the record. A head begins it anew; its images came before."""
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
        """Seconds for which its engine stores the answer; 0: it is not stored."""
        head = next((frame for frame in self._frames if frame[:1] == REQUEST), None)
        return decode_head(head).keep if head is not None else 0.0

    def framed(self) -> bytes:
        return framed(*self._frames)
