"""Actors that fail on command, for tools.faults.chaos: every real actor with one class in front of it.

`tools.faults.hooks:lightllm_mp.actors.router/RouterActor` is the program of a router with hooks. A real-time signal
says which fault happens during the next message or plan, or that the actor writes its books.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.shm.layout import KIND_MESSAGE

FOLDER = "LIGHTLLM_CHAOS_FOLDER"
"""Environment variable: the folder of orders for slow starts and of the actors' books."""
RAISE, EXIT, HANG, CORRUPT, GRAB, BOOKS = (signal.SIGRTMIN + number for number in range(1, 7))
SLOW_START = 2.0
"""Seconds that a slow start takes longer."""
GRABBED = 256 << 20
"""Bytes that an actor allocates and frees on command."""
GARBAGE = b"\xc1" * 5
"""A byte that msgpack never uses."""


class Injected(RuntimeError):
    """The exception that the tool ordered."""


class Hooked:
    """Stands before an actor class."""

    mailbox: Any

    def __init__(self, launch: Any, mailbox: Any, stats: Any) -> None:
        self._ordered = 0
        self._name, self._folder = launch.name, Path(os.environ[FOLDER])
        for number in (RAISE, EXIT, HANG, CORRUPT, GRAB):
            signal.signal(number, self._order)
        signal.signal(BOOKS, self._write_books)
        slow = slow_file(self._folder, self._name)
        if slow.exists():
            slow.unlink()
            time.sleep(SLOW_START)
        super().__init__(launch, mailbox, stats)  # type: ignore[call-arg]

    def on_message(self, peer: str, message: Any) -> None:
        self._obey()
        super().on_message(peer, message)  # type: ignore[misc]

    def on_plan(self, plan: bytes) -> None:
        self._obey()
        super().on_plan(plan)  # type: ignore[misc]

    def _order(self, number: int, frame: FrameType | None) -> None:
        self._ordered = number

    def _obey(self) -> None:
        ordered, self._ordered = self._ordered, 0
        if ordered == RAISE:
            raise Injected("an exception was ordered")
        if ordered == EXIT:
            os._exit(0)
        if ordered == CORRUPT:
            self._send_garbage()
        if ordered == GRAB:
            bytearray(GRABBED)
        while ordered == HANG:
            pass

    def _send_garbage(self) -> None:
        """Sends a record that is no message to one of the peers."""
        links = [link for name, link in self.mailbox._links.items() if name != SUPERVISOR]
        random.choice(links).sender.try_put(GARBAGE, KIND_MESSAGE)

    def _write_books(self, number: int, frame: FrameType | None) -> None:
        data = json.dumps({"leased": self.mailbox.leased, "backlog": self.mailbox.backlog})
        part = books_file(self._folder, self._name).with_suffix(".part")
        part.write_text(data)
        part.rename(books_file(self._folder, self._name))


def slow_file(folder: Path, name: str) -> Path:
    """While it exists, the next start of actor `name` is slow."""
    return folder / f"slow-{name}"


def books_file(folder: Path, name: str) -> Path:
    """{"leased": bytes of its arenas that others hold, "backlog": messages that wait for room}"""
    return folder / f"books-{name}.json"


def hooked_program(program: str) -> str:
    """The same program with hooks."""
    return f"{__name__}:{program.replace(':', '/')}"


def __getattr__(name: str) -> type:
    module, slash, actor = name.partition("/")
    if not slash:
        raise AttributeError(name)
    base = getattr(importlib.import_module(module), actor)
    return type(f"Hooked{actor}", (Hooked, base), {})
