"""Finds the C extension."""

from __future__ import annotations

from typing import Any

try:
    from lightllm_mp.kernels.cpu import _native
except ImportError:  # no compiler when the package was installed
    _native = None


def native() -> Any:
    """The extension, or None where it was not built."""
    return _native
