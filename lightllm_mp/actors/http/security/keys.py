"""Loads the operator's API keys. Imports no HTTP library, so that the start can check the keys before anything else."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError

ENVIRONMENT, ADMIN_ENVIRONMENT = "LIGHTLLM_MP_API_KEYS", "LIGHTLLM_MP_ADMIN_KEYS"
"""Environment variables with keys, separated by commas or white space."""
RELAY_ENVIRONMENT = "LIGHTLLM_MP_RELAY_KEYS"
ADMIN_PREFIX = "admin:"
"""Prefix of the key file's lines that hold an admin key."""


@dataclass(frozen=True)
class ApiKeys:
    """SHA-256 digests of the keys. An admin key opens user routes too. False if there is no key."""

    users: frozenset[bytes] = frozenset()
    admins: frozenset[bytes] = frozenset()
    relays: frozenset[bytes] = frozenset()
    """Keys of fronts of several engines (http/relayed_answer.py); clients have none of them."""

    def __len__(self) -> int:
        return len(self.users | self.admins)


def load_keys(config: HttpConfig, environment: Mapping[str, str]) -> ApiKeys:
    """All keys of the file and the environment. Raises ConfigError if a source is set but has no key."""
    users, admins = _split(environment, ENVIRONMENT), _split(environment, ADMIN_ENVIRONMENT)
    for line in _lines(config.api_key_file):
        if line.startswith(ADMIN_PREFIX):
            admins.append(line.removeprefix(ADMIN_PREFIX).strip())
        else:
            users.append(line)
    keys = ApiKeys(_digests(users), _digests(admins), _digests(relay_keys(environment)))
    if not keys and (config.api_key_file is not None or {ENVIRONMENT, ADMIN_ENVIRONMENT} & environment.keys()):
        raise ConfigError(f"no API key in --api-key-file, {ENVIRONMENT} or {ADMIN_ENVIRONMENT}")
    return keys


def relay_keys(environment: Mapping[str, str]) -> list[str]:
    """The keys themselves, for a front that uses one."""
    return [key for key in _split(environment, RELAY_ENVIRONMENT) if key]


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file cannot be read: {type(error).__name__}") from None
    return [line.strip() for line in lines if not line.lstrip().startswith("#")]


def _split(environment: Mapping[str, str], name: str) -> list[str]:
    return re.split(r"[,\s]+", environment.get(name, ""))


def _digests(keys: Collection[str]) -> frozenset[bytes]:
    return frozenset(digest(key) for key in keys if key)


def digest(key: str) -> bytes:
    """The SHA-256 digest that stands for a key in comparisons."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def is_known(given: bytes, keys: Collection[bytes]) -> bool:
    """Whether a digest is among these, in constant time."""
    return sum(hmac.compare_digest(given, key) for key in keys) > 0  # no early exit
