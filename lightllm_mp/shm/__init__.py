"""Message queues between processes: lock-free rings in shared memory, doorbells, leased blocks for large payloads, and
the message codec."""

from __future__ import annotations

from lightllm_mp.shm.arena import Arena, Block, BlockRef
from lightllm_mp.shm.channel import INLINE_LIMIT, ChannelPort, ChannelReceiver, ChannelSender
from lightllm_mp.shm.doorbell import Bell
from lightllm_mp.shm.errors import LaneClosed, LeaseError, ProtocolError
from lightllm_mp.shm.implementation import implementation
from lightllm_mp.shm.inbox import Inbox, Record
from lightllm_mp.shm.journal import Journal
from lightllm_mp.shm.lane import Lane, LaneStats
from lightllm_mp.shm.layout import KIND_BLOCK, KIND_MESSAGE, KIND_RAW, KIND_RAW_BLOCK, KIND_RELEASE
from lightllm_mp.shm.segment import Segment
from lightllm_mp.shm.sender import Sender

__all__ = [
    "INLINE_LIMIT",
    "KIND_BLOCK",
    "KIND_MESSAGE",
    "KIND_RAW",
    "KIND_RAW_BLOCK",
    "KIND_RELEASE",
    "Arena",
    "Bell",
    "Block",
    "BlockRef",
    "ChannelPort",
    "ChannelReceiver",
    "ChannelSender",
    "Inbox",
    "Journal",
    "Lane",
    "LaneClosed",
    "LaneStats",
    "LeaseError",
    "ProtocolError",
    "Record",
    "Segment",
    "Sender",
    "implementation",
]
