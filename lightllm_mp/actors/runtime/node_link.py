"""The connection between the first machine of an engine and another machine that holds ranks.

Both ends have a key. Each end proves that it has the key before the other reads anything else from it; a proof is bound
to a challenge of the other end, so it cannot be used again. Then come frames: length u32 and kind u8, little-endian,
and the payload, of at most MOST bytes. An end that has sent nothing for a while sends an empty frame. An end that
receives nothing for SILENCE takes the connection for lost, so a cut cable and a stopped process look like a closed
socket.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import os
import struct

import msgspec
from msgspec import Struct

from lightllm_mp.actors.runtime.actor_settings import WorkerSettings
from lightllm_mp.actors.topology import PLANS
from lightllm_mp.errors import EngineError
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Message, Wire
from lightllm_mp.model_description import ModelDescription, from_plain, to_plain

MOST = PLANS
"""Most bytes of a frame: no plan is longer."""
PIECE = 1 << 20
"""Bytes of embeddings in one frame."""
BEAT, SILENCE = 2.0, 15.0
"""Seconds between two signs of life, and seconds without any after which the connection counts as lost."""
HANDSHAKE = 10.0
"""Seconds for the other end to prove its key."""
CHALLENGE = DIGEST = 32
"""Bytes."""
_FRAME = struct.Struct("<IB")
_OFFSET = struct.Struct("<Q")
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)


class FrameKind(enum.IntEnum):
    ALIVE, LAUNCH, PLAN, IMAGE, MESSAGE, LOST = range(6)


class NodeLaunch(Struct, frozen=True, array_like=True):
    """What another machine needs to start its ranks."""

    settings: WorkerSettings
    model: ModelDescription
    meeting: str
    facts: Facts | None
    """See LaunchSpec."""
    epoch: int
    images: int
    """Bytes of image memory; 0: none."""


class NodeLost(EngineError):
    """The connection cannot be used any more. The message says why."""

    code = "node_lost"


class NodeLink:
    """One end of the connection, after `greet`. `peer`: a name for the other end, for messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        self._reader, self._writer, self._peer = reader, writer, peer
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    def send(self, kind: FrameKind, payload: bytes = b"") -> None:
        """Send a frame. Never waits. Drops frames on a lost connection; `receive` reports the loss."""
        if len(payload) > MOST:
            raise ValueError(f"a frame of {len(payload)} bytes")
        if not self._writer.is_closing():
            self._writer.writelines((_FRAME.pack(len(payload), kind), payload))

    def send_message(self, message: Wire) -> None:
        self.send(FrameKind.MESSAGE, _encoder.encode(message))

    def send_image(self, offset: int, data: memoryview) -> None:
        """Send `data`, which is at `offset` of the image memory."""
        for at in range(0, len(data), PIECE):
            self.send(FrameKind.IMAGE, _OFFSET.pack(offset + at) + data[at : at + PIECE])

    async def receive(self) -> tuple[FrameKind, bytes]:
        """The next frame, without signs of life. NodeLost."""
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    length, kind = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
                if length > MOST:
                    raise NodeLost(f"{self._peer} sends a frame of {length} bytes")
                payload = await self._payload(length)
                found = FrameKind(kind)
            except TimeoutError:
                raise NodeLost(f"{self._peer} is silent for {SILENCE:.0f} s") from None
            except (OSError, EOFError):
                raise NodeLost(f"the connection to {self._peer} is lost") from None
            except ValueError:
                raise NodeLost(f"{self._peer} sends a frame of kind {kind}") from None
            if found is not FrameKind.ALIVE:
                return found, payload

    async def _payload(self, length: int) -> bytes:
        """The payload. It may take longer than SILENCE, as long as bytes arrive."""
        parts: list[bytes] = []
        while length:
            async with asyncio.timeout(SILENCE):
                parts.append(await self._reader.read(min(length, PIECE)))
            if not parts[-1]:
                raise EOFError
            length -= len(parts[-1])
        return b"".join(parts)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self.send(FrameKind.ALIVE)

    def close(self) -> None:
        self._beating.cancel()
        self._writer.transport.abort()

    async def finish(self) -> None:
        """Close after all frames have left this process; waits at most a second."""
        self._beating.cancel()
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


async def greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, *, node: int, first: bool
) -> None:
    """Prove the key to the other end, and check its proof. Both ends call it. `first`: this is the first machine.
    NodeLost if the other end is not what it claims to be: machine number `node`, or the first machine of this
    engine."""
    own = os.urandom(CHALLENGE)
    try:
        async with asyncio.timeout(HANDSHAKE):
            writer.write(own)
            other = await reader.readexactly(CHALLENGE)
            writer.write(_proof(key, first, node, own, other))
            proof = await reader.readexactly(DIGEST)
    except (OSError, EOFError, TimeoutError):
        raise NodeLost("the other end of a connection between nodes leaves before it has shown its key") from None
    if not hmac.compare_digest(proof, _proof(key, not first, node, other, own)):
        raise NodeLost("the other end of a connection between nodes has another key or number")


def _proof(key: bytes, first: bool, node: int, own: bytes, other: bytes) -> bytes:
    said = b"lightllm-mp: %s node, for node %d\0" % (b"first" if first else b"other", node)
    return hmac.digest(key, said + own + other, hashlib.sha256)


def encode_launch(launch: NodeLaunch) -> bytes:
    return msgspec.msgpack.encode(launch, enc_hook=to_plain)


def decode_launch(payload: bytes) -> NodeLaunch:
    """NodeLost for a launch of another version."""
    try:
        return msgspec.msgpack.decode(payload, type=NodeLaunch, dec_hook=from_plain)
    except msgspec.DecodeError as error:
        raise NodeLost(f"the first node runs another version of this program: {error}") from None


def decode_message(payload: bytes) -> Wire:
    """NodeLost if the payload is not a message."""
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise NodeLost(f"a node sends an invalid message: {error}") from None


def decode_image(payload: bytes) -> tuple[int, memoryview]:
    """(offset, data). NodeLost if the payload is not an image."""
    if len(payload) < _OFFSET.size:
        raise NodeLost("a node sends an image without an offset")
    return _OFFSET.unpack_from(payload)[0], memoryview(payload)[_OFFSET.size :]
