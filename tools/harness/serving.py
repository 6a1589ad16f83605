"""A server for a tool, with the flags of `lightllm-mp serve`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from lightllm_mp import Server, launch
from lightllm_mp.cli.flags import resolve

QUIET = ("--port", "0", "--disable-access-log", "--log-level", "warning")
START = 600.0
"""Seconds that a server may take to start."""


@contextlib.contextmanager
def serving(*arguments: str, more: Sequence[str] = ()) -> Iterator[Server]:
    """A ready server on a free port of this machine. `more` overrules `arguments`. Raises ConfigError."""
    config, _ = resolve([*QUIET, *arguments, *more], os.environ)
    with launch(config) as server:
        yield server.wait_ready(START)
