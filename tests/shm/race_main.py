"""Hands records over to a consumer that is about to sleep, many times, and counts lost wake-ups.

`python -m tests.shm.race_main EXTENSION HAND_OVERS MAX_LOST SECONDS`: EXTENSION is a build of _ring.c, or "python" for
the twin.
Prints "hand-overs lost". Both sides start each hand-over together, wait a random 0 to 1 us, and then one puts while the
other parks. A side that parks and gets no ring although a record is there has lost a wake-up.
"""

from __future__ import annotations

import importlib.util
import os
import random
import select
import sys
import time
import traceback

CELL = 32  # words: 256 bytes apart
GO, PUT, READY, STOP, LOST = (CELL * i for i in range(5))


def load(path: str) -> None:
    """Makes the given build the extension of this process."""
    os.environ["LIGHTLLM_MP_RING"] = "python" if path == "python" else "c"
    if path != "python":
        spec = importlib.util.spec_from_file_location("lightllm_mp.shm._ring", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[spec.name] = module


def consume(lane, own, peer, words) -> None:
    from lightllm_mp.shm import Inbox

    inbox = Inbox(own)
    inbox.add(lane, peer)
    poller = select.poll()
    poller.register(inbox.fileno(), select.POLLIN)
    jitters = [range(random.randrange(24)) for _ in range(4093)]
    number = 0
    while True:
        number += 1
        inbox.drain()  # has the tail in the cache
        jitter = jitters[number % 4093]
        words[READY] = number
        while words[GO] != number:
            if words[STOP]:
                return
        for _ in jitter:
            pass
        if inbox.park():
            while not poller.poll(0):
                if words[PUT] == number and not poller.poll(0):  # the put is over: no ring comes any more
                    words[LOST] += 1
                    break
            inbox.unpark()
        while not inbox.drain():
            pass


def produce(lane, own, peer, words, hand_overs: int, max_lost: int, seconds: float) -> int:
    from lightllm_mp.shm import Sender

    put = Sender(lane, own, peer).try_put
    jitters = [range(random.randrange(24)) for _ in range(4099)]
    end = time.monotonic() + seconds
    number = 0
    while number < hand_overs and words[LOST] < max_lost and time.monotonic() < end:
        for _ in range(100):
            number += 1
            while words[READY] != number:
                if words[STOP]:
                    return number
            jitter = jitters[number % 4099]
            peer.parked  # noqa: B018  has the parked flag in the cache
            words[GO] = number
            for _ in jitter:
                pass
            put(b"x" * 16)
            words[PUT] = number
    while words[READY] != number + 1 and not words[STOP]:
        pass
    words[STOP] = 1
    return number


def main() -> None:
    path, hand_overs, max_lost, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    load(path)
    from lightllm_mp.shm import Bell, Lane, Segment

    words = Segment.create("race", 4096).view.cast("Q")
    lane, one, two = Lane.create(1 << 16, 1, 2), Bell.create(1), Bell.create(2)
    cpus = sorted(os.sched_getaffinity(0))
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {cpus[-1]})
            consume(lane, two, one, words)
        except BaseException:
            traceback.print_exc()
            words[STOP] = 1
        finally:
            os._exit(0)
    os.sched_setaffinity(0, {cpus[0]})
    number = produce(lane, one, two, words, hand_overs, max_lost, seconds)
    os.waitpid(child, 0)
    print(number, words[LOST])


if __name__ == "__main__":
    main()
