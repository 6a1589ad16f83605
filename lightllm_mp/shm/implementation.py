"""Selects the ring of this process: the C extension, or its twin in pure Python."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from types import ModuleType
from typing import Literal

from lightllm_mp.errors import ConfigError, StartupError

VARIABLE = "LIGHTLLM_MP_RING"
_log = logging.getLogger(__name__)


def implementation() -> Literal["c", "python"]:
    """The value of the environment variable LIGHTLLM_MP_RING ("c" or "python"), else "c" if the extension is built.

    ConfigError for any other value, StartupError for "c" without the extension.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "python":
        return "python"
    if wanted not in ("", "c"):
        raise ConfigError(f"{VARIABLE}={wanted!r}: must be 'c' or 'python'", param=VARIABLE)
    if extension() is not None:
        return "c"
    if wanted == "c":
        raise StartupError(f"{VARIABLE}=c, but the extension lightllm_mp.shm._ring is not built")
    return "python"


@cache
def extension() -> ModuleType | None:
    """The compiled module; None, logged once, if it is not built."""
    try:
        return importlib.import_module("lightllm_mp.shm._ring")
    except ImportError as error:
        _log.info("the ring extension is not available (%s); this process uses the slower Python ring", error)
        return None
