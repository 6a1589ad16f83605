"""Journals that are freed at the end of a test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from lightllm_mp.actors.front.request_journal import RequestJournal
from lightllm_mp.shm import Journal


@contextlib.contextmanager
def journal(size: int = 1 << 20) -> Iterator[RequestJournal]:
    memory = Journal.create(size)
    opened = Journal.open(os.dup(memory.fd))
    try:
        yield RequestJournal(opened)
    finally:
        opened.close()
        memory.close()
