from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightllm_mp.errors import ConfigError, StartupError
from lightllm_mp.shm import KIND_RAW, Bell, Inbox, Lane, LaneClosed, Segment, Sender, implementation
from lightllm_mp.shm.implementation import VARIABLE
from tests.shm.lanes import Pair, payloads


def attach(lane: Lane) -> Lane:
    return Lane.attach(*(os.dup(fd) for fd in lane.fds))


def refused(lane: Lane, why: str) -> None:
    fds = [os.dup(fd) for fd in lane.fds]
    with pytest.raises(StartupError, match=why):
        Lane.attach(*fds)
    for fd in fds:
        os.close(fd)


def test_the_environment_chooses_the_implementation(ring: str, monkeypatch: pytest.MonkeyPatch):
    assert implementation() == ring
    monkeypatch.setenv(VARIABLE, "rust")
    with pytest.raises(ConfigError, match="'c' or 'python'"):
        implementation()


def test_attached_lane_is_the_same_lane(pair: Pair):
    other = attach(pair.lane)
    assert (other.capacity, other.producer, other.consumer, other.epoch, other.state) == (1 << 16, 1, 2, 1, "open")
    sender, inbox = pair.sender(), Inbox(pair.consumer_bell)
    assert inbox.add(other, pair.producer_bell) == 0
    sender.try_put(b"over the other mapping", KIND_RAW)
    assert inbox.drain() == [(0, KIND_RAW, b"over the other mapping")]
    inbox.close()
    other.close()


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (0, "wrong magic"),
        (8, "layout version"),
        (12, "layout version"),
        (16, "checksum"),
        (24, "checksum"),
        (48, "check"),
    ],
)
def test_attach_refuses_a_damaged_header(pair: Pair, at: int, why: str):
    pair.lane.segment.view[at] ^= 2
    refused(pair.lane, why)


def test_attach_refuses_another_size(pair: Pair):
    small = Segment.create("small", 8192)
    small.view[:4096] = pair.lane.segment.view[:4096]
    with pytest.raises(StartupError, match="65536 bytes of data, but its memory has 4096"):
        Lane.attach(small.fd, *pair.lane.fds[1:])
    small.close()


def test_attach_refuses_the_other_implementation(pair: Pair, ring: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "python" if ring == "c" else "c")
    refused(pair.lane, f"is for the {ring} ring")


def test_attach_refuses_a_missing_descriptor(ring: str, pair: Pair):
    fds = pair.lane.fds[:1] if ring == "python" else (*pair.lane.fds, 0)
    with pytest.raises(StartupError, match="does not have"):
        Lane.attach(*fds)


@pytest.mark.parametrize("capacity", [0, 100, 3 << 12, 1 << 40])
def test_capacity_must_be_a_power_of_two(ring: str, capacity: int):
    with pytest.raises(ValueError, match="power of two"):
        Lane.create(capacity, 1, 2)


def test_reset_empties_for_a_new_epoch_and_keeps_the_gauges(pair: Pair):
    sender, inbox = pair.ends()
    watcher = attach(pair.lane)
    while sender.try_put(bytes(5000)):
        pass
    inbox.drain(3)
    pair.lane.poison()
    before = watcher.stats()
    watcher.reset(2)
    after = watcher.stats()
    assert (after.puts, after.full_events, after.max_backlog) == (before.puts, before.full_events, before.max_backlog)
    assert (after.backlog_bytes, after.state, pair.lane.epoch) == (0, "open", 2)
    assert inbox.drain() == []
    attach(pair.lane).close()  # the checksum was written anew
    for epoch in (3, 3, 4):  # ends that exist go on, in the same and in a new epoch
        texts = [f"{epoch} {n}".encode() * 1000 for n in range(12)]
        assert sender.put_many(texts) == 12
        assert payloads(inbox.drain(5)) == texts[:5]
        watcher.reset(epoch)
        assert inbox.drain() == []
    watcher.close()


def test_new_ends_over_the_same_lane_go_on_where_the_old_ones_stopped(pair: Pair):
    """A process that stays rebuilds its ends without a reset (control lanes)."""
    for turn in range(50):
        sender, inbox = pair.ends()
        texts = [bytes([turn]) * size for size in (1, 3000, 8192, 17)]
        assert sender.put_many(texts) == 4
        assert payloads(inbox.drain(2)) == texts[:2]
        sender.close()
        inbox.close()
        again = pair.inbox()
        assert payloads(again.drain()) == texts[2:]
        again.close()
    assert pair.lane.stats().backlog_bytes == 0


def test_finish_lets_the_rest_be_drained(pair: Pair):
    sender, inbox = pair.ends()
    sender.try_put(b"last")
    sender.finish()
    with pytest.raises(LaneClosed, match="closed"):
        sender.try_put(b"more")
    assert inbox.wait(10)
    assert payloads(inbox.drain()) == [b"last"]
    assert pair.lane.stats().state == "closed"


def test_closed_ends_say_so(pair: Pair):
    sender, inbox = pair.ends()
    for end in (sender, inbox):
        end.close()
        end.close()
    with pytest.raises(ValueError, match=r"closed|released"):
        sender.try_put(b"x")
    assert inbox.drain() == []
    for call in (inbox.park, inbox.unpark, inbox.wait):
        with pytest.raises(ValueError, match=r"closed|released"):
            call()


def test_stats_of_an_idle_and_a_full_lane(pair: Pair):
    sender, inbox = pair.ends()
    assert pair.lane.stats() == (0, 0, 0, 0, 0, 1 << 16, "open")
    while sender.try_put(bytes(1016)):
        pass
    stats = pair.lane.stats()
    assert (stats.puts, stats.full_events, stats.max_backlog, stats.backlog_bytes) == (64, 1, 1 << 16, 1 << 16)
    assert len(inbox.drain()) == 64
    assert pair.lane.stats().backlog_bytes == 0


def test_a_lane_serves_processes_that_only_inherit_descriptors(ring: str):
    lane, back = Lane.create(1 << 16, 1, 2), Lane.create(1 << 16, 2, 1)
    one, two = Bell.create(1), Bell.create(2)
    fds = [*lane.fds, *back.fds, *one.fds, *two.fds]
    program = """
import sys
from lightllm_mp.shm import *
fds = [int(fd) for fd in sys.argv[1:]]
n = (len(fds) - 4) // 2
lane, back, one, two = Lane.attach(*fds[:n]), Lane.attach(*fds[n:2*n]), Bell.attach(*fds[-4:-2]), Bell.attach(*fds[-2:])
inbox, sender = Inbox(two), Sender(back, two, one)
inbox.add(lane, one)
got = []
while len(got) < 1000:
    assert inbox.wait(10)
    got += inbox.drain()
    for _, kind, payload in got[-1:]:
        sender.try_put(payload[::-1], kind)
"""
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, fds)], pass_fds=fds)
    sender, inbox = Sender(lane, one, two), Inbox(one)
    inbox.add(back, two)
    for number in range(1000):
        while not sender.try_put(b"%d" % number * 20):
            inbox.wait(1)
    last = b""
    while last != b"%d" % 999 * 20:
        assert inbox.wait(20)
        for _, _, payload in inbox.drain():
            last = payload[::-1]
    assert process.wait(20) == 0
    for part in (sender, inbox, lane, back, one, two):
        part.close()
