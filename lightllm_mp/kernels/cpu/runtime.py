"""The C extension, and which of its levels of instructions is in use."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from lightllm_mp.errors import ConfigError

VARIABLE = "LIGHTLLM_MP_CPU"
"""Environment variable that names a lower level than the processor's best, for tests and comparisons."""

_NAME = "lightllm_mp.kernels.cpu._native"


def native() -> Any:
    """The extension, or None where it was not built (there was no compiler when the package was installed)."""
    try:
        return import_module(_NAME)
    except ImportError:
        return None


def levels() -> list[str]:
    """Levels that this processor has, the lowest first. Packed weights are the same for all."""
    return native().levels()


def level() -> str:
    """The level in use."""
    return native().level()


def use_level(name: str) -> None:
    """ConfigError for a level that this processor has not."""
    if name not in levels():
        raise ConfigError(f"{VARIABLE}={name}: this processor has {', '.join(levels())}", param=VARIABLE)
    native().use_level(name)


@cache
def obey_environment() -> None:
    """Once in a process: uses the level that the environment names, where it names one. ConfigError as `use_level`."""
    if name := os.environ.get(VARIABLE):
        use_level(name)
