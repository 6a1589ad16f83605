"""One image for all tests that run it."""

from __future__ import annotations

import pytest
import torch

from tests.containers import podman


@pytest.fixture(scope="session")
def image() -> str:
    """The name of the CPU image, built from docker/cpu.Dockerfile."""
    reason = podman.unavailable()
    if not reason and torch.version.cuda:
        reason = "pip's torch is the CUDA build here: the image would take many gigabytes"
    if reason:
        pytest.skip(reason)
    return podman.image()
