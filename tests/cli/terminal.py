"""A program on a terminal of its own: what a person types and sees."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence

DEADLINE = 60.0


class Terminal:
    """The program is the leader of the terminal's session, so Ctrl-C is a signal. `screen`: all that it wrote."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._fd, program = pty.openpty()
        self.screen = ""
        self._seen = 0
        try:
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *command],
                stdin=program,
                stdout=program,
                stderr=program,
                env={**env, "TERM": "xterm", "COLUMNS": "200", "INPUTRC": os.devnull},
            )
        finally:
            os.close(program)

    def type(self, keys: str) -> None:
        """Types when the program waits for keys: while the terminal still edits lines, Ctrl-C and Ctrl-D are lost."""
        end = time.monotonic() + DEADLINE
        while termios.tcgetattr(self._fd)[3] & termios.ICANON:
            assert self._read(time.monotonic() + 0.01) or time.monotonic() < end, "the program does not wait for keys"
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        """Types Ctrl-C while the program is at work."""
        os.write(self._fd, b"\x03")

    def until(self, pattern: str, deadline: float = DEADLINE) -> str:
        """Waits until the pattern is on the screen, behind what was waited for before. Returns what stands up to it."""
        end = time.monotonic() + deadline
        while not (found := re.compile(pattern).search(self.screen, self._seen)):
            assert self._read(end), f"no {pattern!r} in {self.screen[self._seen :]!r}"
        before, self._seen = self.screen[self._seen : found.end()], found.end()
        return before

    def end(self, deadline: float = DEADLINE) -> int:
        """Waits until the program has ended. Returns its exit code."""
        until = time.monotonic() + deadline
        while self._read(until):
            pass
        return self.process.wait(60)

    def _read(self, end: float) -> bool:
        """Takes what the program writes. False when it has closed the terminal, or at the time `end`."""
        if not select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody holds the other end
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._fd)


@contextlib.contextmanager
def terminal(command: Sequence[str], env: Mapping[str, str]) -> Iterator[Terminal]:
    opened = Terminal(command, env)
    try:
        yield opened
    finally:
        opened.close()
