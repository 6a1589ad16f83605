"""Writes random bytes into lanes and drains them: the ends poison the lane or go on, and never crash.

`python -m tests.shm.fuzz_main EXTENSION ROUNDS SEED`: EXTENSION is a build of _ring.c (as in the sanitizer test), or
"python".
"""

from __future__ import annotations

import contextlib
import os
import random
import sys

from tests.shm.race_main import load

HOT = (128, 132, 256, 260, 384, 512, 64, 640, 768, 784)
WORDS = (0, 1, 7, 8, 15, 16, 4096, 65528, 65536, 65544, 1 << 31, (1 << 32) - 1, 15 << 32, (15 << 32) + 8, 1 << 63)
INTERESTING = (*WORDS, (1 << 64) - 8, (1 << 64) - 1, 1 << 48, (1 << 32) + 8193, (6 << 32) + 1, (1 << 32) + 100)


def damage(lane, rng: random.Random) -> None:
    """A few words or bytes of the header or of the records get other values."""
    view = lane.segment.view
    for _ in range(rng.randrange(1, 6)):
        word = rng.choice(INTERESTING) if rng.random() < 0.7 else rng.getrandbits(64)
        at = rng.choice(HOT) if rng.random() < 0.4 else 4096 + 8 * rng.randrange(lane.capacity // 8)
        if rng.random() < 0.2:
            at = rng.randrange(52, len(view) - 8)
        size = rng.choice((1, 2, 4, 8))
        view[at : at + size] = word.to_bytes(8, "little")[:size]
    if len(lane.fds) == 3 and rng.random() < 0.5:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(rng.choice(lane.fds[1:]), rng.choice((1, 8, 65536, 1 << 40)))


def one_round(rng: random.Random, bells) -> str:
    from lightllm_mp.shm import Inbox, Lane, LaneClosed, Sender

    lane = Lane.create(1 << 16, 1, 2)
    good = Lane.create(1 << 12, 1, 2)
    inbox = Inbox(bells[1])
    inbox.add(lane, bells[0])
    inbox.add(good, bells[0])
    sender, other = Sender(lane, *bells), Sender(good, *bells)
    for _ in range(rng.randrange(1, 8)):
        with contextlib.suppress(LaneClosed):
            sender.put_many([bytes(rng.choice((0, 1, 100, 8192))) for _ in range(rng.randrange(20))])
        if rng.random() < 0.8:
            damage(lane, rng)
        inbox.drain(rng.randrange(1, 50))
        inbox.wait(0)
    assert other.try_put(b"still here")
    for _ in range(3):
        records = inbox.drain(1 << 20)
        if any(index == 1 and payload == b"still here" for index, _, payload in records):
            break
    else:
        raise AssertionError("the healthy lane was disturbed")
    assert inbox.poisoned in ([], [0])
    state = lane.state
    lane.stats()
    lane.reset(2)
    assert sender.try_put(b"new")
    assert [payload for index, _, payload in inbox.drain() if index == 0] == [b"new"]
    for part in (sender, other, inbox, lane, good):
        part.close()
    return state


def main() -> None:
    path, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    load(path)
    from lightllm_mp.shm import Bell

    bells = Bell.create(1), Bell.create(2)
    rng = random.Random(seed)
    states = [one_round(rng, bells) for _ in range(rounds)]
    print(" ".join(f"{state}={states.count(state)}" for state in sorted(set(states))))


if __name__ == "__main__":
    main()
