from __future__ import annotations

import os
import random
import time

import pytest

from lightllm_mp.shm import KIND_MESSAGE, KIND_RAW, KIND_RELEASE, Bell, Inbox, Lane, Sender
from lightllm_mp.shm.layout import HEAD, TAIL
from tests.shm.lanes import Pair, child, payloads

CAPACITY = 1 << 16
TOP = 1 << 64


def start_at(lane: Lane, position: int) -> None:
    """Sets the positions as if this many bytes had passed already. Call it before the ends are made."""
    for word in (HEAD, TAIL):
        lane.segment.view[word : word + 8] = (position % TOP).to_bytes(8, "little")


def test_records_arrive_in_order_with_kind_and_content(pair: Pair):
    sender, inbox = pair.ends()
    sent = [
        (KIND_MESSAGE, b""),
        (KIND_RAW, b"1"),
        (KIND_RELEASE, bytes(range(8))),
        (KIND_RAW, b"x" * sender.max_record),
    ]
    for kind, payload in sent:
        assert sender.try_put(payload, kind=kind) is True
    assert inbox.drain(max=3) == [(0, kind, payload) for kind, payload in sent[:3]]
    assert inbox.drain() == [(0, *sent[3])]
    assert inbox.drain() == []


def test_anything_with_a_buffer_can_be_put(pair: Pair):
    sender, inbox = pair.ends()
    for data in (b"bytes", bytearray(b"array"), memoryview(b"view")):
        assert sender.try_put(data)
    assert payloads(inbox.drain()) == [b"bytes", b"array", b"view"]


def test_wrong_arguments_raise_and_leave_the_lane_as_it_was(pair: Pair):
    sender, inbox = pair.ends()
    assert sender.max_record == CAPACITY // 8
    with pytest.raises(ValueError, match="8193 bytes does not fit: the lane takes 8192"):
        sender.try_put(bytes(8193))
    for kind in (-1, 0, 6, 15, 1 << 16):
        with pytest.raises(ValueError, match="no such record kind"):
            sender.try_put(b"x", kind)
    with pytest.raises(TypeError):
        sender.try_put("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sender.try_put()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        sender.try_put(b"x", nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="does not fit"):
        sender.put_many([b"good", bytes(9000), b"good"])
    assert inbox.drain() == []
    assert pair.lane.stats().puts == 0
    assert sender.try_put(b"fine")
    assert payloads(inbox.drain()) == [b"fine"]


@pytest.mark.parametrize("position", [0, TOP - CAPACITY, TOP - 4096, TOP - 8])
def test_every_size_passes_every_place_around_the_end(pair: Pair, position: int):
    """Sizes 0 to the largest; records reach the end of the data area anywhere, and the position overflows 64 bits."""
    start_at(pair.lane, position)
    sender, inbox = pair.ends()
    data = random.Random(1).randbytes(CAPACITY)
    sizes = [*range(300), *range(300, 8192, 61), *range(8100, 8193)]
    random.Random(position).shuffle(sizes)
    waiting: list[bytes] = []
    for size in sizes:
        payload = data[size : 2 * size]
        while not sender.try_put(payload):
            got = payloads(inbox.drain(2))
            assert got == waiting[: len(got)]
            assert got
            del waiting[: len(got)]
        waiting.append(payload)
    assert payloads(inbox.drain(10_000)) == waiting
    assert pair.lane.state == "open"
    assert pair.lane.stats().puts == len(sizes)


def test_each_offset_of_the_wrap_with_a_record_that_does_not_fit_behind_it(pair: Pair):
    for back in range(8, 8300, 8):
        pair.lane.reset(2)
        start_at(pair.lane, CAPACITY - back)
        sender, inbox = pair.ends()
        sent = [b"a" * 5, b"b" * 8192, b"c" * 1000]
        assert sender.put_many(sent) == 3
        assert payloads(inbox.drain()) == sent
        sender.close()
        inbox.close()


def test_put_many_publishes_what_fits_with_one_doorbell(pair: Pair):
    sender, inbox = pair.ends()
    assert inbox.park()
    records = [bytes([n]) * 1016 for n in range(100)]
    assert sender.put_many(records) == 64
    stats = pair.lane.stats()
    assert (stats.puts, stats.full_events, stats.doorbells) == (64, 1, 1)
    assert payloads(inbox.drain(64)) == records[:64]
    assert sender.put_many(records[64:], kind=KIND_RAW) == 36
    assert inbox.drain() == [(0, KIND_RAW, record) for record in records[64:]]
    assert sender.put_many([]) == 0


def test_full_lane_answers_at_once_and_rings_once_when_half_is_free(pair: Pair):
    sender, inbox = pair.ends()
    own = pair.producer_inbox()
    while sender.try_put(bytes(1016)):
        pass
    took = []
    for _ in range(1000):
        start = time.perf_counter()
        assert not sender.try_put(bytes(1016))
        took.append(time.perf_counter() - start)
    assert sorted(took)[500] < 50e-6  # so many that other jobs on the machine make no difference
    start, cpu = time.monotonic(), time.process_time()
    assert not own.wait(0.2)  # no consumer drains: the producer sleeps, it does not spin
    assert time.monotonic() - start >= 0.2
    assert time.process_time() - cpu < 0.1
    wakes = 0
    for _ in range(64):
        assert len(inbox.drain(1)) == 1
        wakes += own.wait(0)
    assert wakes == 1
    assert sender.try_put(bytes(1016))


def test_space_comes_back_to_a_producer_that_sleeps(pair: Pair):
    rounds = 3000

    def produce() -> None:
        sender, own = pair.sender(), pair.producer_inbox()
        for number in range(rounds):
            while not sender.try_put(number.to_bytes(4, "little") * 500):
                assert own.wait(10), "space came back, but nobody rang"

    with child(produce) as process:
        inbox = pair.inbox()
        got: list[bytes] = []
        while len(got) < rounds:
            assert inbox.wait(10), "a record came, but nobody rang"
            got += payloads(inbox.drain(17))
        assert process.join() == 0
    assert [int.from_bytes(record[:4], "little") for record in got] == list(range(rounds))
    assert pair.lane.stats().full_events > 0


def test_no_lane_starves_and_order_holds_per_lane(ring: str):
    bell, bells = Bell.create(9), [Bell.create(n) for n in range(3)]
    lanes = [Lane.create(CAPACITY, n, 9) for n in range(3)]
    senders = [Sender(lane, own, bell) for lane, own in zip(lanes, bells, strict=True)]
    inbox = Inbox(bell)
    assert [inbox.add(lane, own) for lane, own in zip(lanes, bells, strict=True)] == [0, 1, 2]
    for sender, amount in zip(senders, (500, 3, 500), strict=True):
        assert sender.put_many([n.to_bytes(4, "little") for n in range(amount)]) == amount
    first = inbox.drain(30)
    assert {lane: sum(record[0] == lane for record in first) for lane in range(3)}[1] == 3
    assert min(sum(record[0] == lane for record in first) for lane in (0, 2)) >= 10
    rest = first + inbox.drain(10_000)
    assert len(rest) == 1003
    for lane in range(3):
        numbers = [int.from_bytes(payload, "little") for index, _, payload in rest if index == lane]
        assert numbers == sorted(numbers)
    inbox.close()
    for part in (*senders, *lanes, *bells, bell):
        part.close()


def test_drain_of_an_inbox_without_lanes_and_with_max_zero(pair: Pair):
    sender, inbox = pair.ends()
    sender.try_put(b"x")
    assert inbox.drain(0) == []
    assert pair.producer_inbox().drain() == []
    assert payloads(inbox.drain(1)) == [b"x"]


def test_park_says_whether_it_is_safe_to_sleep(pair: Pair):
    sender, inbox = pair.ends()
    assert inbox.park()
    assert pair.consumer_bell.parked
    sender.try_put(b"x")
    assert inbox.wait(0)
    inbox.unpark()
    assert not inbox.park()
    assert payloads(inbox.drain()) == [b"x"]
    assert inbox.park()
    inbox.unpark()
    assert not pair.consumer_bell.parked


def test_wait_times_out_and_is_rung(pair: Pair):
    _, inbox = pair.ends()
    start = time.monotonic()
    assert not inbox.wait(0.05)
    assert 0.05 <= time.monotonic() - start < 5
    assert not inbox.wait(timeout=0, spin_us=200)
    assert not inbox.wait(-1)
    pair.consumer_bell.ring()
    assert inbox.wait()
    assert not inbox.wait(0)


@pytest.mark.parametrize("spin_us", [0, 50])
def test_ping_pong_between_two_processes(ring: str, spin_us: int):
    with Pair() as there, Pair() as back:

        def echo() -> None:
            inbox, sender = there.inbox(), back.sender()
            for _ in range(300):
                while not (records := inbox.drain()):
                    assert inbox.wait(10, spin_us)
                assert sender.put_many(payloads(records)) == len(records)

        with child(echo) as process:
            sender, inbox = there.sender(), back.inbox()
            for number in range(300):
                sender.try_put(b"%d" % number)
                while not (records := inbox.drain()):
                    assert inbox.wait(10, spin_us=spin_us)
                assert payloads(records) == [b"%d" % number]
            assert process.join() == 0


def test_wait_releases_the_interpreter_and_hears_signals(pair: Pair):
    import signal
    import threading

    _, inbox = pair.ends()
    threading.Timer(0.05, pair.consumer_bell.ring).start()  # runs only if wait releases the GIL
    assert inbox.wait(10)

    def stop(*_: object) -> None:
        raise InterruptedError("signal")

    before = signal.signal(signal.SIGUSR2, stop)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    with pytest.raises(InterruptedError, match="signal"):
        inbox.wait(10)
    signal.signal(signal.SIGUSR2, before)


def test_idle_waiting_costs_nothing(pair: Pair):
    import resource

    inbox = pair.inbox()
    before = resource.getrusage(resource.RUSAGE_THREAD)
    assert not inbox.wait(0.5)
    after = resource.getrusage(resource.RUSAGE_THREAD)
    assert after.ru_nvcsw - before.ru_nvcsw <= 3
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.1
