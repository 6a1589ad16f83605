"""The connection between the first machine of an engine and another one, which holds ranks.

Both ends have a key. Each shows that it has it before anything that it sends is looked at; an answer is bound to a
challenge of the other end, so none can be used again. Then come frames: length u32 and kind u8, little endian, and the
payload, of at most MOST bytes. An end that has sent nothing for a while sends an empty frame. An end that hears nothing
for SILENCE takes the connection for lost, so a cut cable and a stopped process look like a closed socket.
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
"""Bytes of a frame: no plan is longer."""
PIECE = 1 << 20
"""Bytes of embeddings in one frame."""
BEAT, SILENCE = 2.0, 15.0
"""Seconds between two signs of life, and without any before the connection counts as lost."""
HANDSHAKE = 10.0
"""Seconds for the other end to show its key."""
CHALLENGE = DIGEST = 32
"""Bytes."""
_FRAME = struct.Struct("<IB")
_OFFSET = struct.Struct("<Q")
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)


class FrameKind(enum.IntEnum):
    ALIVE, LAUNCH, PLAN, IMAGE, MESSAGE, LOST = range(6)


class NodeLaunch(Struct, frozen=True, array_like=True):
    """What another machine is told to start its ranks."""

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
    """One end, after `greet`. `peer`: a name for the other end, for messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        self._reader, self._writer, self._peer = reader, writer, peer
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    def send(self, kind: FrameKind, payload: bytes = b"") -> None:
        """Never waits. What is sent on a lost connection is dropped; `receive` says that it is lost."""
        if len(payload) > MOST:
            raise ValueError(f"a frame of {len(payload)} bytes")
        if not self._writer.is_closing():
            self._writer.writelines((_FRAME.pack(len(payload), kind), payload))

    def send_message(self, message: Wire) -> None:
        self.send(FrameKind.MESSAGE, _encoder.encode(message))

    def send_image(self, offset: int, data: memoryview) -> None:
        """`data` stands at `offset` of the image memory."""
        for at in range(0, len(data), PIECE):
            self.send(FrameKind.IMAGE, _OFFSET.pack(offset + at) + data[at : at + PIECE])

    async def receive(self) -> tuple[FrameKind, bytes]:
        """The next frame that is not a mere sign of life. NodeLost."""
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
        """It may take longer than SILENCE, as long as something comes."""
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
        """Close when all that was sent has left this process."""
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
    """Both ends call it; `first`: this is the first machine. NodeLost if the other end is not the one that it says:
    number `node`, or the first machine to which it belongs."""
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
    """NodeLost for one of another version."""
    try:
        return msgspec.msgpack.decode(payload, type=NodeLaunch, dec_hook=from_plain)
    except msgspec.DecodeError as error:
        raise NodeLost(f"the first node runs another version of this program: {error}") from None


def decode_message(payload: bytes) -> Wire:
    """NodeLost if it is none."""
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise NodeLost(f"a node sends an invalid message: {error}") from None


def decode_image(payload: bytes) -> tuple[int, memoryview]:
    """(offset, data). NodeLost if it is no image."""
    if len(payload) < _OFFSET.size:
        raise NodeLost("a node sends an image without an offset")
    return _OFFSET.unpack_from(payload)[0], memoryview(payload)[_OFFSET.size :]
