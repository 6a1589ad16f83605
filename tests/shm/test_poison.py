"""A lane is checked like untrusted input: an impossible record poisons it, and only it."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_mp.shm import Bell, LaneClosed
from lightllm_mp.shm.layout import HEAD, PAGE, TAIL
from tests.shm.fuzz_main import one_round
from tests.shm.lanes import Pair, payloads

PAD = 15 << 32


def header(length: int, kind: int = 1, flags: int = 0) -> int:
    return length | kind << 32 | flags << 48


def write(pair: Pair, at: int, word: int) -> None:
    pair.lane.segment.view[at : at + 8] = word.to_bytes(8, "little")


@pytest.mark.parametrize(
    "word",
    [
        0,
        header(100, kind=0),
        header(100, kind=6),
        header(100, kind=0xFFFF),
        header(100, flags=1),
        header(108),  # longer than the published bytes
        header(8193),
        header(0xFFFFFFFF),
        PAD | 8,  # a pad that does not end where the data area ends
        PAD,
        PAD | (65536 - 8),
        PAD | 0xFFFFFFF8,
    ],
)
def test_an_impossible_record_poisons_the_lane(pair: Pair, word: int):
    sender, inbox = pair.ends()
    sender.put_many([b"first", bytes(100)])
    write(pair, PAGE + 16, word)
    assert payloads(inbox.drain()) == [b"first"]
    assert (inbox.poisoned, pair.lane.state) == ([0], "poisoned")
    assert inbox.drain() == []
    assert inbox.park()  # its remaining records keep no process awake
    inbox.unpark()
    with pytest.raises(LaneClosed, match="poisoned"):
        sender.try_put(b"more")
    assert pair.producer_inbox().wait(10), "the producer was not told"


@pytest.mark.parametrize("tail", [4, 65544, 1 << 63, (1 << 64) - 8])
def test_an_impossible_tail_poisons_the_c_lane(tail: int, monkeypatch: pytest.MonkeyPatch, request):
    monkeypatch.setenv("LIGHTLLM_MP_RING", "c")
    with Pair() as pair:
        _, inbox = pair.ends()
        write(pair, TAIL, tail)
        assert inbox.drain() == []
        assert inbox.poisoned == [0]


@pytest.mark.parametrize("counted", [4, 65544, 1 << 63])
def test_an_impossible_count_poisons_the_twin(counted: int, monkeypatch: pytest.MonkeyPatch):
    import os

    monkeypatch.setenv("LIGHTLLM_MP_RING", "python")
    with Pair() as pair:
        sender, inbox = pair.ends()
        os.eventfd_write(pair.lane.fds[1], counted)
        assert inbox.drain() == []
        assert inbox.poisoned == [0]
    with Pair() as pair:
        os.eventfd_write(pair.lane.fds[1], (1 << 64) - 2)
        with pytest.raises(LaneClosed, match="another process has counted"):
            pair.sender().try_put(b"x")
    with Pair() as pair:
        sender, inbox = pair.ends()
        sender.try_put(b"x")
        os.eventfd_write(pair.lane.fds[2], (1 << 64) - 2)
        assert payloads(inbox.drain()) == [b"x"]
        assert inbox.poisoned == [0]
    with Pair() as pair:
        sender = pair.sender()
        while sender.try_put(bytes(1016)):
            pass
        os.eventfd_write(pair.lane.fds[2], 65536 + 8)
        with pytest.raises(LaneClosed, match="more bytes were released than published"):
            sender.try_put(bytes(1016))


@pytest.mark.parametrize("head", [8, 1 << 63, (1 << 64) - 65544])
def test_a_producer_does_not_write_by_an_impossible_head(head: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIGHTLLM_MP_RING", "c")
    with Pair() as pair:
        write(pair, HEAD, head)
        with pytest.raises(LaneClosed, match="impossible"):
            pair.sender().try_put(b"x")
        assert pair.lane.state == "poisoned"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_nonsense_in_the_lane_never_crashes_an_end(ring: str, seed: int):
    bells = Bell.create(1), Bell.create(2)
    assert one_round(random.Random(seed), bells) in ("open", "poisoned", "closed", "corrupt")
    for bell in bells:
        bell.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**64 - 1)), max_size=6),
    sizes=st.lists(st.integers(0, 90)),
)
def test_a_drained_record_never_reaches_beyond_what_was_published(ring: str, words, sizes):
    with Pair(4096) as pair:
        sender, inbox = pair.ends()
        sender.put_many([bytes(size) for size in sizes])
        backlog = pair.lane.stats().backlog_bytes
        for at, word in words:
            write(pair, PAGE + 8 * at, word)
        got = inbox.drain(10_000)
        assert sum(8 + len(payload) for _, _, payload in got) <= backlog
        assert pair.lane.state == "poisoned" or pair.lane.stats().backlog_bytes == 0
