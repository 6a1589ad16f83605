"""SIGKILL at any moment: no record is torn, the peer learns of it, others are undisturbed, nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.shm.lanes import Child, Pair, checked, child, number_of, payloads

NOTICE = 2.0
"""Seconds within which the end of a process is known; a busy machine may take long."""
SIZES = (16, 60, 100, 1000, 4000, 8000)


def produce_for_ever(pair: Pair) -> Callable[[], None]:
    def work() -> None:
        sender, own, number = pair.sender(), pair.producer_inbox(), 0
        rng = random.Random(os.getpid())
        while True:
            if sender.try_put(checked(number, rng.choice(SIZES))):
                number += 1
            else:
                own.wait(1)

    return work


def consume_for_ever(pair: Pair) -> Callable[[], None]:
    def work() -> None:
        inbox = pair.inbox()
        while True:
            inbox.wait(1)
            for record in payloads(inbox.drain(50)):
                number_of(record)

    return work


def kill_and_measure(process: Child) -> float:
    process.kill()
    seconds = process.notified(20)
    assert process.join() == -signal.SIGKILL
    return seconds


def kill_producers(times: int) -> None:
    rng, notices, total = random.Random(7), [], 0
    for _ in range(times):
        with Pair() as pair, child(produce_for_ever(pair)) as process:
            inbox, expected = pair.inbox(), 0
            inbox.wait(30)  # until it works
            end = time.monotonic() + rng.random() * 0.02 + 0.005
            killed = False
            while True:
                for record in payloads(inbox.drain()):
                    assert number_of(record) == expected
                    expected += 1
                if killed:
                    break
                if time.monotonic() > end:
                    notices.append(kill_and_measure(process))
                    killed = True
                else:
                    inbox.wait(0.002)
            # All that was published is drained. The twin moves its gauge before it publishes.
            assert pair.lane.stats().backlog_bytes <= (0 if pair.lane.implementation == "c" else 8016 + 8192)
            assert inbox.poisoned == []
            total += expected
            pair.lane.reset(2)  # a new producer takes over
            sender = pair.sender()
            assert sender.try_put(b"again")
            assert payloads(inbox.drain()) == [b"again"]
    assert total > 10 * times
    assert sorted(notices)[len(notices) // 2] < NOTICE


def kill_consumers(times: int) -> None:
    rng, notices = random.Random(8), []
    for _ in range(times):
        with Pair() as pair, child(consume_for_ever(pair)) as process:
            sender, own, number = pair.sender(), pair.producer_inbox(), 0
            end = time.monotonic() + rng.random() * 0.02 + 0.005
            while time.monotonic() < end or not number:
                if sender.try_put(checked(number, rng.choice(SIZES))):
                    number += 1
                else:
                    own.wait(0.002)
            notices.append(kill_and_measure(process))
            while sender.try_put(bytes(4000)):  # the producer stops, it does not hang
                pass
            pair.lane.reset(2)
            inbox = pair.inbox()  # a new consumer
            assert sender.try_put(checked(0, 100))
            assert [number_of(record) for record in payloads(inbox.drain())] == [0]
    assert sorted(notices)[len(notices) // 2] < NOTICE


def test_killed_producers_tear_no_record(ring: str):
    kill_producers(8)


def test_killed_consumers_stop_the_producer_only(ring: str):
    kill_consumers(8)


MANY = {"c": 200, "python": 40}
"""Kills of each implementation; the Python one is there for comparison."""


@pytest.mark.slow
def test_many_killed_producers(ring: str):
    kill_producers(MANY[ring])


@pytest.mark.slow
def test_many_killed_consumers(ring: str):
    kill_consumers(MANY[ring])


def test_the_other_producer_comes_on_as_before(ring: str):
    """One inbox, two producers; after one is killed, the other one is woken for every record and every free half.

    All sleep without a limit, so that one lost wake-up ends the test at its deadline.
    """
    from lightllm_mp.shm import Bell, Inbox, Lane, Sender

    bell, bells = Bell.create(0), [Bell.create(1), Bell.create(2)]
    lanes = [Lane.create(1 << 16, n, 0) for n in (1, 2)]
    deadline = 30.0

    def producer(index: int) -> Callable[[], None]:
        def work() -> None:
            sender, own, number = Sender(lanes[index], bells[index], bell), Inbox(bells[index]), 0
            while True:
                if sender.try_put(checked(number, 100)):
                    number += 1
                else:
                    own.wait(deadline)

        return work

    with child(producer(0)) as victim, child(producer(1)) as survivor:
        inbox = Inbox(bell)
        for lane, own in zip(lanes, bells, strict=True):
            inbox.add(lane, own)
        counts, end = [0, 0], time.monotonic() + deadline

        def read_until(condition: Callable[[], bool]) -> None:
            while not condition():
                inbox.wait(deadline)
                assert time.monotonic() < end, "a wake-up was lost"
                for index, _, record in inbox.drain():
                    assert number_of(record) == counts[index]
                    counts[index] += 1

        read_until(lambda: min(counts) > 2000)  # several times a lane's capacity
        kill_and_measure(victim)
        enough = counts[1] + 20_000
        read_until(lambda: counts[1] > enough)
        kill_and_measure(survivor)
    inbox.close()
    for part in (*lanes, *bells, bell):
        part.close()


def test_killing_the_whole_group_leaves_nothing(ring: str):
    program = """
import os, sys, time
from lightllm_mp.shm import *
bells = [Bell.create(n) for n in range(2)]
lanes = [Lane.create(1 << 20, 0, 1) for _ in range(10)]
arena = Arena.create(1 << 24)
if os.fork() == 0:
    sender = Sender(lanes[0], *bells)
    while True:
        sender.try_put(bytes(1000)) or time.sleep(0.001)
inbox = Inbox(bells[1])
inbox.add(lanes[0], bells[0])
inbox.wait()
print("talking", flush=True)
while True:
    inbox.wait()
    inbox.drain()
"""
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"talking\n"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert process.stdout.read() == b"", "the group's pipe is closed, so no process of it is left"
    process.stdout.close()
    assert set(os.listdir("/dev/shm")) <= before
