"""A process that the system refuses to start leaves no descriptor, no process and no zombie."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from lightllm_mp.actors.runtime.actor_settings import GuideSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.supervision.child_process import ChildProcess
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.models.model_config import read_model_config
from tests.paths import GOLDENS

REFUSED = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
memfd_create = os.memfd_create


def launch() -> LaunchSpec:
    model = ModelDescription("nowhere", read_model_config(GOLDENS / "llama"), None)
    return LaunchSpec(
        "odd", "none:None", 0, "http", "native", GuideSettings("auto"), "info", False, model, (0, 0), (), 0
    )


def second_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, except that its second call is refused."""
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise REFUSED
        return function(*arguments)

    return call


REFUSALS = {
    "the first memfd": lambda: mock.patch.object(os, "memfd_create", side_effect=REFUSED),
    "the second memfd": lambda: mock.patch.object(os, "memfd_create", second_time(memfd_create)),
    "a write": lambda: mock.patch.object(os, "write", side_effect=REFUSED),
    "fork": lambda: mock.patch.object(subprocess, "Popen", side_effect=OSError(errno.EAGAIN, "no process left")),
    "pidfd": lambda: mock.patch.object(os, "pidfd_open", side_effect=REFUSED),
    "epoll": lambda: mock.patch.object(asyncio.SelectorEventLoop, "add_reader", side_effect=REFUSED),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refused_start_leaves_nothing(what: str) -> None:
    async def body() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        with REFUSALS[what](), pytest.raises(OSError, match=r"no process left|Too many open files"):
            ChildProcess(launch(), (), pytest.fail)
        assert sorted(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)

    asyncio.run(asyncio.wait_for(body(), 30))
