"""Finds the C extension."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAME = "lightllm_mp.kernels.cpu._native"


def native() -> Any:
    """The extension, or None where it was not built (there was no compiler when the package was installed)."""
    try:
        return import_module(_NAME)
    except ImportError:
        return None
