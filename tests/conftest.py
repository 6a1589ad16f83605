"""What all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from lightllm_mp.sandbox import VISIBLE
from tests.paths import ROOT

# Tests run beside one another, on few cores: OpenMP's threads, which spin while they wait, would take them from each
# other (a training run on two cores took five times as long). Servers choose their threads themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests look into the processes of servers, which hide themselves from other processes.
os.environ.setdefault(VISIBLE, "1")
# Before the first import of triton, which reads it once: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


LONGEST = ("containers", "end_to_end", "packages", "clients", "actors", "shm", "tools", "browser", "deploy", "ray")
"""Folders whose files take long. Tests that run in several processes begin with them: none is left for the end."""


def _place(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m gpu` is everything that runs on a GPU: the tests marked so, and those of kernels, which run on a GPU where
    there is one and are interpreted elsewhere."""
    items.sort(key=_place)
    for item in items:
        if getattr(getattr(item, "module", None), "DEVICE", None) == "cuda":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True, scope="module")
def package_logger() -> Iterator[None]:
    """An engine inside this process configures the package's logger; the next file's tests find it as it was."""
    logger = logging.getLogger("lightllm_mp")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
