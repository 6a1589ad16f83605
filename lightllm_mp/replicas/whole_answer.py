"""Reads a replica's answer as a whole, for requests that the front itself sends."""

from __future__ import annotations

import asyncio
import contextlib

from msgspec import Struct

from lightllm_mp.replicas import frames
from lightllm_mp.replicas.call import Fleet, RelayCall, ReplicaLost
from lightllm_mp.replicas.frames import Head, Record


class WholeAnswer(Struct, frozen=True):
    head: Head
    body: bytes
    record: Record


async def whole_answer(fleet: Fleet, name: str, call: RelayCall, seconds: float) -> WholeAnswer | None:
    """The answer; None if the replica does not complete it within `seconds`."""
    record, head, body = Record(), None, bytearray()
    with contextlib.suppress(ReplicaLost, TimeoutError):
        async with asyncio.timeout(seconds), contextlib.aclosing(fleet.call(name, call)) as pieces:
            async for some in pieces:
                for frame in some:
                    match frame[:1]:
                        case frames.HEAD:
                            head, body = frames.head(frame), bytearray()
                        case frames.BODY:
                            body += frames.body(frame)[1]
                        case frames.END if head is not None:
                            return WholeAnswer(head, bytes(body), record)
                        case frames.END | frames.ALIVE:
                            pass
                        case _:
                            record.add(frame)
    return None
