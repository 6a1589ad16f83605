"""Standard error for logs: a reader that does not read, or a full disk, costs log lines and never time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TextIO

Notice = Callable[[int], str]


class LosingOutput:
    """A text stream that writes whole lines or drops them, and reports later how many it dropped.

    A pipe `fd` must not block (see `log_output`). An error of write drops the line. `notice(count)` makes the line that
    reports dropped lines.
    """

    def __init__(self, fd: int, notice: Notice, *, owned: bool) -> None:
        self._fd, self._notice, self._owned = fd, notice, owned
        self.dropped = 0
        self._torn = False
        """The last line was written in part: a newline comes before the next line."""

    def write(self, text: str) -> int:
        if self._put((self._notice(self.dropped) if self.dropped else "") + text):
            self.dropped = 0
        else:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

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
    """The stream for log handlers. A pipe is opened again: O_NONBLOCK on the descriptor itself would affect the other
    programs that share it."""
    try:
        kind = os.fstat(stderr.fileno()).st_mode
        if stat.S_ISFIFO(kind):
            own = os.open(f"/proc/self/fd/{stderr.fileno()}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return LosingOutput(own, notice, owned=True)
        if stat.S_ISREG(kind):
            return LosingOutput(stderr.fileno(), notice, owned=False)
    except (OSError, ValueError):
        pass  # not a file, or not ours to open: write to it directly
    return stderr
