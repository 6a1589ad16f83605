"""One child process: started by exec, watched by pidfd, never outliving its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from lightllm_mp.actors.birth import Birth

PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


class ChildProcess:
    """`python -m lightllm_mp.actors.child NAME FD`. `on_exit(reason)` is called once on the loop, after reaping."""

    def __init__(self, birth: Birth, fds: Iterable[int], on_exit: Callable[[str], None]) -> None:
        birth_fd = birth.to_memfd()
        command = [sys.executable, "-m", "lightllm_mp.actors.child", birth.name, str(birth_fd)]
        try:
            self._popen = subprocess.Popen(
                command, pass_fds=(*fds, birth_fd), env=_environment(), stdin=subprocess.DEVNULL
            )
        finally:
            os.close(birth_fd)
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._on_exit = on_exit
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0

    def kill(self) -> None:
        if self.alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(describe_exit(self._popen.wait()))


def describe_exit(code: int) -> str:
    """The end of a process in words, from a subprocess return code (negative: signal)."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _environment() -> dict[str, str]:
    """The parent's, and this package importable also when it runs from a source tree."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *filter(None, paths)])}
