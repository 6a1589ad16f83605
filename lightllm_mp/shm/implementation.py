"""Which ring this process uses: the C extension, or its twin from the standard library."""

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
    """The choice of the environment variable LIGHTLLM_MP_RING (c or python), else c where it was built."""
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
    """The compiled module, or None (logged once) where it was not built."""
    try:
        return importlib.import_module("lightllm_mp.shm._ring")
    except ImportError as error:
        _log.info("the ring extension is not available (%s), the slower stdlib ring is used", error)
        return None
