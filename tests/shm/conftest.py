"""Every test here with the fixture `ring` runs with the C ring and with its Python twin."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm_mp.shm.implementation import VARIABLE, extension
from tests.shm.lanes import Pair


@pytest.fixture(params=["c", "python"])
def ring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "c" and extension() is None:
        pytest.skip("the extension lightllm_mp.shm._ring is not built")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def pair(ring: str) -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a descriptor, a name in the tmpfs or a child behind."""
    fds, names, children = _descriptors(), set(os.listdir("/dev/shm")), _children()
    yield
    if _descriptors() != fds:
        gc.collect()
    assert _descriptors() == fds
    assert set(os.listdir("/dev/shm")) <= names
    assert _children() <= children


def _children() -> set[str]:
    """Pids of all children, also dead ones that are not reaped."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for file in lists for pid in file.read_text().split()}


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue
        if "memfd" in target or "event" in target:
            found[name] = target
    return found
