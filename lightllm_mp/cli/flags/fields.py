"""The list of all settings, read from the structs in config.py."""

from __future__ import annotations

import typing
from typing import Any, NamedTuple

import msgspec

from lightllm_mp.config import Config

ENV_PREFIX = "LIGHTLLM_MP_"


class FlagField(NamedTuple):
    """One setting: its part of `Config`, its name, type and default."""

    part: str
    name: str
    type: Any
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def many(self) -> bool:
        """True if the setting takes several values."""
        return typing.get_origin(self.type) is tuple


def parts() -> dict[str, type[msgspec.Struct]]:
    """The structs of `Config`, by the name of the part, in order."""
    return {part.name: part.type for part in msgspec.structs.fields(Config)}


def fields() -> dict[str, FlagField]:
    """All settings by name, in the order of config.py."""
    return {
        field.name: FlagField(part, field.name, field.type, field.default)
        for part, struct in parts().items()
        for field in msgspec.structs.fields(struct)
    }
