"""The journal: the next owner reads what the first one wrote, wherever that was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lightllm_mp.errors import StartupError
from lightllm_mp.shm import Journal
from lightllm_mp.shm.journal import BLOCK
from tests.paths import ROOT


@pytest.fixture
def memory():
    journal = Journal.create(1 << 20)
    yield journal
    journal.close()


def opened(memory: Journal) -> Journal:
    return Journal.open(os.dup(memory.fd))


def contents(journal: Journal) -> list[list[bytes]]:
    return sorted(frames for _, frames in journal.records())


def test_the_next_owner_reads_what_the_last_one_wrote(memory):
    first = opened(memory)
    a, b, c = (first.add(name) for name in (b"a", b"b", b"c"))
    assert first.append(a, b"more")
    assert first.append(b, b"x" * 3 * BLOCK)
    first.remove(c)
    first.close()
    second = opened(memory)
    assert contents(second) == [[b"a", b"more"], [b"b", b"x" * 3 * BLOCK]]
    assert second.used == 5 * BLOCK
    for record, _ in list(second.records()):
        second.remove(record)
    second.close()
    third = opened(memory)
    assert contents(third) == []
    assert third.used == 0
    third.close()


def test_a_full_journal_refuses_and_keeps_what_it_has(memory):
    journal = opened(memory)
    record = journal.add(b"head")
    while journal.append(record, b"y" * 10_000):
        pass
    frames = journal.frames(record)
    assert journal.add(b"z" * 2 * BLOCK) is None
    journal.close()
    again = opened(memory)
    assert contents(again) == [frames]
    assert not again.append(record, b"y" * 10_000)
    again.remove(record)
    assert again.append(again.add(b"z" * 2 * BLOCK), b"y" * 10_000)
    again.close()


def test_random_histories_agree_with_a_dictionary(memory):
    rng = random.Random(7)
    journal, model = opened(memory), dict[int, list[bytes]]()
    for _ in range(3000):
        action, data = rng.random(), rng.randbytes(rng.choice((0, 1, 40, BLOCK - 12, BLOCK - 8, 3 * BLOCK)))
        if action < 0.3:
            number = journal.add(data)
            if number is not None:
                assert number not in model
                model[number] = [data]
        elif model and action < 0.9:
            number = rng.choice(list(model))
            if journal.append(number, data):
                model[number].append(data)
        elif model and action < 0.97:
            number = rng.choice(list(model))
            journal.remove(number)
            del model[number]
        elif action > 0.99:
            journal.close()
            journal = opened(memory)
        if rng.random() < 0.01:
            assert dict(journal.records()) == model
    assert contents(journal) == sorted(model.values())
    journal.close()


WRITER = """
import random, sys
from lightllm_mp.shm import Journal
journal = Journal.open(int(sys.argv[1]))
rng = random.Random(int(sys.argv[2]))
records = {number: len(frames) for number, frames in journal.records()}
print("begun", flush=True)
while True:
    if len(records) < 20 and (number := journal.add(b"0")) is not None:
        records[number] = 1
    number = rng.choice(list(records))
    if rng.random() < 0.1 or not journal.append(number, str(records[number]).encode() * rng.choice((1, 100, 3000))):
        journal.remove(number)
        del records[number]
    else:
        records[number] += 1
"""


def test_a_writer_that_is_killed_anywhere_leaves_whole_frames(memory):
    rng = random.Random(3)
    for seed in range(12):
        fd = os.dup(memory.fd)
        os.set_inheritable(fd, True)
        command = [sys.executable, "-c", WRITER, str(fd), str(seed)]
        writer = subprocess.Popen(command, pass_fds=(fd,), stdout=subprocess.PIPE, cwd=ROOT)
        os.close(fd)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        time.sleep(rng.random() / 20)
        writer.send_signal(signal.SIGKILL)
        writer.wait(20)
        writer.stdout.close()
        journal = opened(memory)
        for _, frames in journal.records():
            assert frames[0] == b"0"
            for number, frame in enumerate(frames):
                text = str(number).encode()
                assert frame == text * (len(frame) // len(text))
                assert frame
        journal.close()


def test_damaged_chains_are_dropped_and_others_kept(memory):
    journal = opened(memory)
    good, bad, twice = journal.add(b"good"), journal.add(b"b" * 2 * BLOCK), journal.add(b"t" * 2 * BLOCK)
    journal._table[2 * bad + 1] = 1 << 60  # an impossible length of a chain
    journal._table[2 * twice] = journal._table[2 * good]
    journal.close()
    again = opened(memory)
    assert [b"good"] in contents(again)
    assert len(contents(again)) <= 2
    again.close()


def test_another_descriptor_is_refused(memory):
    memory.segment.view[8] ^= 1
    with pytest.raises(StartupError):
        opened(memory)
