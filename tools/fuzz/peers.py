"""Targets for data between actors: messages, bytes in an arena, returned leases, step plans."""

from __future__ import annotations

import contextlib
import os
from array import array
from functools import cache

import msgspec
import numpy as np

from lightllm_mp import messages as say
from lightllm_mp.errors import StartupError
from lightllm_mp.facts import Facts
from lightllm_mp.plan import PlanBuilder, unpack
from lightllm_mp.shm import (
    Arena,
    Bell,
    BlockRef,
    ChannelPort,
    ChannelReceiver,
    ChannelSender,
    Lane,
    LeaseError,
    ProtocolError,
)
from lightllm_mp.shm.layout import KIND_LAST, PAGE
from lightllm_mp.shm.sender import Sender
from tools.fuzz.features import seen, size_class
from tools.fuzz.reader import Reader

GRANULE, BLOCKS = 256, 16
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(say.Message)


class Peer:
    """A channel whose peer is the input: it sends any record, writes into its arena and returns any lease."""

    def __init__(self) -> None:
        self.bells = Bell.create(1), Bell.create(2)
        self.to_peer, self.from_peer = Lane.create(4096, 1, 2), Lane.create(4096, 2, 1)
        self.own, self.theirs = (Arena.create(GRANULE * BLOCKS, GRANULE) for _ in range(2))
        self.seen = Arena.attach(os.dup(self.theirs.fd))
        self.sender = Sender(self.to_peer, *self.bells)
        self.outgoing = ChannelSender(self.sender, _encoder, self.own)
        self.port = ChannelPort(self.outgoing, ChannelReceiver(self.from_peer, _decoder, self.seen))
        self.lent: list[BlockRef] = []

    def record(self, kind: int, payload: bytes) -> None:
        """The value is a message or bytes. An impossible record poisons the lane and does nothing else."""
        try:
            value = self.port.decode(kind, payload)
        except (ProtocolError, LeaseError) as error:
            seen(error.message)
            assert self.from_peer.state == "poisoned"
            self.from_peer.reset(2)
            return
        if not isinstance(value, bytes | None):
            assert isinstance(value, say.Wire)
            again = _encoder.encode(value)
            assert _encoder.encode(_decoder.decode(again)) == again

    def block(self, payload: bytes, kind: int) -> None:
        """A record with a reference to its payload, as a correct peer sends it."""
        if len(payload) <= GRANULE * BLOCKS - 64 and (block := self.theirs.alloc(len(payload))):
            self.record(kind, _encoder.encode(self.theirs.write(block, payload)))
            self.theirs.free(block)

    def lend(self, size: int) -> None:
        if (ref := self.outgoing.lend(bytes(size))) is not None:
            self.lent.append(ref)

    def come_back(self, which: int, generation: int) -> None:
        if self.lent:
            ref = self.lent[which % len(self.lent)]
            lease = ref.offset.to_bytes(8, "little") + (ref.generation + generation).to_bytes(8, "little")
            self.record(5, lease)

    def damage(self, at: int, data: bytes) -> None:
        """Damages what the peer may write: blocks and their headers. The first page is checked once, at the attach."""
        view = self.theirs.segment.view
        at = PAGE + at % (len(view) - PAGE)
        view[at : at + len(data)] = data[: len(view) - at]

    def look(self, ref: BlockRef) -> None:
        """A reference made of the fields of a message."""
        with contextlib.suppress(LeaseError):
            assert len(self.seen.read(ref)) == ref.length

    def attach(self, at: int, data: bytes) -> None:
        """A new process attaches to an arena whose first words its peer has overwritten."""
        other = Arena.create(GRANULE, GRANULE)
        other.segment.view[at : at + len(data)] = data
        fd = os.dup(other.fd)
        try:
            Arena.attach(fd).close()
        except StartupError:
            pass
        finally:
            other.close()

    def close(self) -> None:
        assert len(self.own._blocks) == self.port.leases, "a block is held without a lease"
        self.port.reset()
        assert self.own.blocks == 0
        for part in (self.sender, self.to_peer, self.from_peer, self.own, self.theirs, self.seen, *self.bells):
            part.close()


def channel(data: bytes) -> None:
    """Records, blocks, leases and damage, in any order."""
    reader, peer = Reader(data), Peer()
    while reader:
        match reader.number(1) % 8:
            case 0:
                peer.record(1 + reader.number(1) % KIND_LAST, reader.take(reader.number(1)))
            case 1:
                peer.block(reader.take(reader.number(2)), 3 + reader.number(1) % 2)
            case 2:
                peer.lend(reader.number(2) % (GRANULE * BLOCKS - 64))
            case 3:
                peer.come_back(reader.number(1), reader.number(1) % 2)
            case 4:
                peer.damage(reader.number(2), reader.take(8))
            case 5:
                numbers = (int.from_bytes(reader.take(reader.number(1) % 9), "little", signed=True) for _ in range(3))
                peer.look(BlockRef(*numbers))
            case 6:
                peer.attach(reader.number(1), reader.take(4))
            case 7:
                peer.record(3 + reader.number(1) % 2, _encoder.encode([reader.number(3) for _ in range(3)]))
    peer.close()


def channel_seeds() -> list[bytes]:
    text = _encoder.encode(say.Failed("x" * 40))
    ref = _encoder.encode(BlockRef(PAGE, 5, 1))
    return [
        b"\x00\x00" + bytes([len(text)]) + text,
        b"\x00\x01\x05plain",
        b"\x01" + len(text).to_bytes(2, "little") + text + b"\x00",
        b"\x01" + len(text).to_bytes(2, "little") + text + b"\x01",
        b"\x00\x02" + bytes([len(ref)]) + ref,
        b"\x02\x00\x01\x03\x00\x00\x02\x10\x00\x03\x00\x01",
        b"\x04\x00\x00" + bytes([1, 0, 0, 0, 0, 0, 0, 0]) + b"\x05\x02\x00\x10\x01\x05\x01\x01",
        b"\x06\x10\x01\x02\x03\x04",
        b"\x00\x00\x0b\x92\xa6Failed\xa2\xff\xff",
        b"\x00\x00\xff" + b"\x92\xa4Ping" + b"\x91" * 249,
    ]


def message(data: bytes) -> None:
    """Decodes bytes as a message, without the lane."""
    peer = _listener()
    try:
        value, lease = peer.decode(1, data)
    except ProtocolError as error:
        seen(error.message)
        return
    assert isinstance(value, say.Wire)
    assert lease is None
    for name in value.__struct_fields__:
        seen(type(value).__name__, name, size_class(getattr(value, name)))
    again = _encoder.encode(value)
    assert _encoder.encode(_decoder.decode(again)) == again
    assert len(again) <= 16 * len(data) + 512, "a short record has become a long message"


@cache
def _listener() -> ChannelReceiver:
    return ChannelReceiver(Lane.create(4096, 1, 2), _decoder)


def message_seeds() -> list[bytes]:
    """One message of every kind."""
    ids = array("i", [5, 6, 7]).tobytes()
    rules = say.Sampling(
        seed=3, stop_ids=ids, bias_ids=ids, bias_values=array("f", [1, 2, 3]).tobytes(), allowed_ids=ids
    )
    error = say.ErrorInfo(400, "no", "invalid_request_error", "invalid_request", "inputs")
    key = bytes(32)
    chat = say.ChatPrompt(b'[{"role":"user","content":"hello"}]', b"[]", b"{}")
    rids, top = array("q", [1, 2]).tobytes(), ((0, ids, ids),)
    image = say.ImageInfo(key, 30, 40, 2, (1, 2, 2))
    sent: list[say.Wire] = [
        say.Generate(1, say.Terms(rules, say.Output(stop=("a", "bc")), 2), text="text", images=(image,)),
        say.Generate(1, say.Terms(rules), chat=chat, emitted=ids),
        say.Count(1, "some text", images=(image,)),
        say.Counted(1, 7),
        say.Tokenized(1, say.Terms(rules), ids, 3, spans=(say.ImageSpan(1, image),)),
        say.Encode(1, (say.RawImage(image, 4096, 100, 7),)),
        say.Embedded(1, (say.ImageBlock(key, 4096, 2, 7),)),
        say.ImageFailed(1, error),
        say.Rejected(1, error),
        say.Open(1, say.Output(), 3, 0, ids),
        say.Tokens(rids, ids, ids, b"\0\1", top),
        say.PromptLogprobs(1, ids, ids, 1, ids, ids),
        say.Pooled(1, bytes(4), 3),
        say.Texts(rids, ids, ids, ids, ids, ids, b"\0\1", b"\0\1", ("a", "é"), top, (("x", "y"),)),
        say.StepDone(1, ids, ids, top, ((0, ids, ids, ids),), 0.1, ids),
        say.Inspect(rids),
        say.SchedulerState(rids, b"\5\3", ids, ids, ids, 16, b"\1", b"\2", b"\3", 5, 2),
        say.ImageCacheState(1, 2, 3, 4, 1, 0, 1, (say.ImageState(key[:4], 2, 3, True, 1, 0.5),)),
        say.EngineState(
            "running", 2, 0.5, (say.ActorState("router", "ready", 7),), (say.LaneState("a", "b", 1, 4096, 2, 0),)
        ),
        say.Ready(Facts(model_name="m", eos_ids=(1, 2))),
        say.Failed("why"),
        say.Loading("weights", 1, 2),
        say.Begin(2, Facts(), ("router",)),
        say.Health(False, "stuck", True),
        *(kind(1) for kind in (say.Abort, say.Scheduled, say.Release, say.Close, say.StopMatched, say.Ping, say.Pong)),
        *(kind(1) for kind in (say.Reset, say.ResetDone)),
        say.Drained(),
        say.Stop(),
    ]
    return [_encoder.encode(one) for one in sent]


def plan(data: bytes) -> None:
    """Reads a step plan: it is refused, or its sections add up and lie within the bytes."""
    try:
        found = unpack(bytearray(data))
    except ValueError as error:
        seen(str(error))
        return
    arrays: list[np.ndarray] = [found.ids.runs, found.ids.values, found.slots.runs, found.slots.values]
    arrays += [found.seqs, found.images, found.rotary.runs, found.rotary.values]
    for setup in found.setups:
        arrays += [setup.bias_ids, setup.bias_values, setup.masked_ids, setup.allowed_ids]
        assert len(setup.bias_ids) == len(setup.bias_values) == setup.rules["biases"]
        assert len(setup.masked_ids) == setup.rules["masked"]
        assert len(setup.allowed_ids) == setup.rules["allowed"]
    assert sum(array.nbytes for array in arrays) <= len(data)
    seen("plan", [size_class(len(array)) for array in arrays[:8]])


def plan_seeds() -> list[bytes]:
    ids = array("i", [5, 6, 7]).tobytes()
    rules = say.Sampling(
        seed=3, stop_ids=ids, bias_ids=ids, bias_values=array("f", [1, 2, 3]).tobytes(), allowed_ids=ids
    )
    full = PlanBuilder(7)
    full.setup(0, 3, rules, (1, 2))
    full.setup(1, 2, say.Sampling(seed=-1))
    full.write_ids(0, 0, np.arange(3))
    full.write_slots(0, 0, np.arange(3))
    full.write_slot_each(np.array([1, 2]), np.array([4, 5]), np.array([8, 9]))
    full.add_each(np.array([1, 2]), np.array([4, 5]))
    full.add(0, 0, 3, sample=True)
    full.add_image(0, 1, 2, 4096, 0, 2)
    full.write_rotary(0, 0, np.arange(9).reshape(3, 3))
    full.state(0, 2, 7)
    return [PlanBuilder(0).pack(), full.pack()]
