"""Loads the C extension and selects its level of instructions."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from lightllm_mp.errors import ConfigError

VARIABLE = "LIGHTLLM_MP_CPU"
"""Environment variable that selects a lower level than the processor's highest, for tests and comparisons."""

_NAME = "lightllm_mp.kernels.cpu._native"


def native() -> Any:
    """The extension, or None if it was not built (no compiler at installation)."""
    try:
        return import_module(_NAME)
    except ImportError:
        return None


def levels() -> list[str]:
    """Levels of this processor, the lowest first. All share the packed weights."""
    return native().levels()


def level() -> str:
    """The level in use."""
    return native().level()


def use_level(name: str) -> None:
    """Select a level. Raises ConfigError if this processor lacks it."""
    if name not in levels():
        raise ConfigError(
            f"{VARIABLE}={name}: not a level of this processor; choose one of {', '.join(levels())}", param=VARIABLE
        )
    native().use_level(name)


@cache
def obey_environment() -> None:
    """Select the level that the environment variable names, once per process. Raises ConfigError like `use_level`."""
    if name := os.environ.get(VARIABLE):
        use_level(name)
