"""Standard error as logs use it: a reader that does not read, or a full disk, costs lines and never time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TextIO

Notice = Callable[[int], str]


class LosingOutput:
    """A text stream that writes whole lines or drops them, and says later how many it dropped.

    `fd` does not block where it is a pipe (`log_output`); where it is a file, errors drop the line. `notice` makes the
    line that tells how many were dropped.
    """

    def __init__(self, fd: int, notice: Notice, *, owned: bool) -> None:
        self._fd, self._notice, self._owned = fd, notice, owned
        self.dropped = 0
        self._torn = False
        """The last line was written in part: the next one begins on a line of its own."""

    def write(self, text: str) -> int:
        if self._put((self._notice(self.dropped) if self.dropped else "") + text):
            self.dropped = 0
        else:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        if self._owned:
            os.close(self._fd)
            self._owned, self._fd = False, -1

    def _put(self, text: str) -> bool:
        data = text.encode("utf-8", "backslashreplace")
        try:
            if self._torn:
                os.write(self._fd, b"\n")
                self._torn = False
            written = os.write(self._fd, data)
        except OSError:
            return False
        self._torn = written < len(data)
        return True


def log_output(stderr: TextIO, notice: Notice) -> TextIO | LosingOutput:
    """What handlers write to. A pipe is opened anew, so that not waiting for its reader is our business alone: the
    descriptor itself is shared with other programs."""
    try:
        kind = os.fstat(stderr.fileno()).st_mode
        if stat.S_ISFIFO(kind):
            own = os.open(f"/proc/self/fd/{stderr.fileno()}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return LosingOutput(own, notice, owned=True)
        if stat.S_ISREG(kind):
            return LosingOutput(stderr.fileno(), notice, owned=False)
    except (OSError, ValueError):
        pass  # no file at all, or somebody else's: write as it comes
    return stderr
