"""Entry point of every child process: `python -m lightllm_mp.actors.runtime.child_main NAME FD STACKS_FD`."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from lightllm_mp.actors.runtime.launch_spec import STACKS_SIGNAL, LaunchSpec
from lightllm_mp.actors.runtime.logs import set_up_logging
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import SUPERVISOR
from lightllm_mp.errors import EngineError
from lightllm_mp.messages import Failed, Loading
from lightllm_mp.sandbox import PR_SET_PDEATHSIG, hide, prctl


def main() -> int:
    hide()
    gc.disable()  # objects made by imports are not garbage
    faulthandler.enable()
    # The signal handler itself writes the stacks: this works in an endless loop, in a lock and in C code.
    faulthandler.register(STACKS_SIGNAL, file=int(sys.argv[3]), all_threads=True)
    launch = LaunchSpec.read(int(sys.argv[2]))
    # The supervisor decides when to stop: a signal to the whole process group (Ctrl-C, SIGTERM, a terminal that closes)
    # must not race with its drain. What an actor starts ignores them too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(launch.parent_fd)
    os.environ["LIGHTLLM_MP_RING"] = launch.ring
    set_up_logging(launch.log_level, json=launch.log_json, actor=launch.name)
    mailbox = Mailbox(launch)
    stats = StatsPage.attach(launch.stats)
    try:
        return _live(launch, mailbox, stats)
    finally:
        mailbox.close()


def _live(launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> int:
    log = logging.getLogger(f"lightllm_mp.{launch.name}")
    try:
        mailbox.send(SUPERVISOR, Loading("importing libraries"))
        program = _load(launch.program)
        gc.freeze()
        gc.enable()
        actor = program(launch, mailbox, stats)
    except Exception as error:
        # The operator gets one line; only a bug gets a traceback.
        if not isinstance(error, EngineError):
            log.exception("cannot start")
        reason = error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        mailbox.send(SUPERVISOR, Failed(reason))
        return 1
    _settle()
    actor.ready()
    actor.run()
    return 0


def _settle() -> None:
    """Objects that the start made live as long as the process: the collector skips them from now on. Memory that the
    start freed goes back to the system, which glibc does only on request."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class ActorProgram(Protocol):
    """What `Child.program` names: an actor that runs."""

    def ready(self) -> None: ...
    def run(self) -> None: ...


def _load(program: str) -> Callable[[LaunchSpec, Mailbox, StatsPage], ActorProgram]:
    module, name = program.split(":")
    return getattr(importlib.import_module(module), name)


def die_with_parent(parent_fd: int) -> None:
    """End this process when its parent ends, for any reason.

    The kernel's signal also ends a process that is stopped or computing. The pipe covers a parent that ended before
    prctl was called.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(parent_fd, 1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
