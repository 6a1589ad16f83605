"""One child process: started by exec, watched through a pidfd, never outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from time import monotonic

from lightllm_mp.actors.runtime.launch_spec import STACKS_SIGNAL, LaunchSpec, child_environment
from lightllm_mp.shm.memfd import create_memfd

log = logging.getLogger("lightllm_mp.supervisor")

STACKS_SECONDS = 0.3
"""Time that a hung child has to write its stacks before it is killed."""
MOST_STACKS = 1 << 16
"""Bytes of stacks that are logged."""


class ChildProcess:
    """`python -m lightllm_mp.actors.runtime.child_main NAME FD STACKS_FD`.

    The running loop calls `on_exit(reason)` once, after it has reaped the process.
    """

    def __init__(self, launch: LaunchSpec, fds: Iterable[int], on_exit: Callable[[str], None]) -> None:
        """OSError if the system has no process, memory or descriptor left; nothing stays open then."""
        self._on_exit = on_exit
        self._name = launch.name
        self.started = monotonic()
        with contextlib.ExitStack() as undo:
            self._stacks = create_memfd(f"stacks-{launch.name}")
            undo.callback(os.close, self._stacks)
            self._popen = _start(launch, fds, self._stacks)
            undo.callback(self._popen.wait)
            undo.callback(self._popen.kill)
            self.pid = self._popen.pid
            self._pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self._pidfd)
            asyncio.get_running_loop().add_reader(self._pidfd, self._reap)
            undo.pop_all()

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0

    def kill(self, silent: float = 0.0) -> None:
        """Kill the process. `silent` > 0: it has hung for so many seconds; log first where.

        A process that is stopped, or does not handle the signal yet, writes no stacks.
        """
        if self.alive and silent:
            log.error("%s has not answered for %.1f s: killed", self._name, silent)
            signal.pidfd_send_signal(self._pidfd, STACKS_SIGNAL)
            asyncio.get_running_loop().call_later(STACKS_SECONDS, self._log_stacks_and_kill)
        elif self.alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _log_stacks_and_kill(self) -> None:
        if self.alive:
            stacks = os.pread(self._stacks, MOST_STACKS, 0).decode(errors="replace").strip()
            log.error("%s hung here:\n%s", self._name, stacks or "(it cannot say: it is stopped, or in the kernel)")
            self.kill()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        os.close(self._stacks)
        self._pidfd = -1
        self._on_exit(describe_exit(self._popen.wait()))


def _start(launch: LaunchSpec, fds: Iterable[int], stacks: int) -> subprocess.Popen[bytes]:
    launch_fd = launch.to_memfd()
    try:
        own = (launch_fd, stacks)
        command = [sys.executable, "-m", "lightllm_mp.actors.runtime.child_main", launch.name, *map(str, own)]
        return subprocess.Popen(command, pass_fds=(*fds, *own), env=child_environment(), stdin=subprocess.DEVNULL)
    finally:
        os.close(launch_fd)


def describe_exit(code: int) -> str:
    """A subprocess return code in words (negative: a signal)."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def reaped_orphans(processes: Iterable[ChildProcess]) -> bool:
    """Reap the ended processes that had another parent. False: one of `processes`, which the loop reaps, hides some of
    them until then."""
    own = {process.pid for process in processes if process.alive}
    with contextlib.suppress(ChildProcessError):  # there is no child at all
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own:
                return False
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
            log.info("reaped process %d, whose parent had ended", ended.si_pid)
    return True
