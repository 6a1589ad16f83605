"""Merges the command line, environment variables and a file into one `Config`.

A flag overrides a variable, a variable overrides the file, the file overrides the default. Each value is converted to
the type of its field. A wrong value is a `ConfigError` of one line that names its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from lightllm_mp.cli.flags.fields import ENV_PREFIX, FlagField, fields, parts
from lightllm_mp.cli.flags.help import expected
from lightllm_mp.cli.flags.lightllm import ALIASES, DEFAULT_WORDS, MEANINGS, OTHERS
from lightllm_mp.cli.flags.sources import GivenValue, from_environment, from_file, from_flags
from lightllm_mp.config import Config
from lightllm_mp.errors import ConfigError


def resolve(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The configuration from `argv` (without the command) and `environ`, and notes about settings without effect.

    ConfigError for a wrong setting. `--help` and `--help-lightllm` print their text and raise SystemExit(0).
    """
    notes: list[str] = []
    flags, file = from_flags(argv)
    file = file or environ.get(ENV_PREFIX + "CONFIG")
    found = from_file(file) if file else []
    return _build(found + from_environment(environ, notes) + flags, notes), notes


def _build(found: Iterable[GivenValue], notes: list[str]) -> Config:
    """Later values override earlier ones. A setting that only LightLLM has adds a note or is refused."""
    known = fields()
    values: dict[str, dict[str, Any]] = {part: {} for part in parts()}
    for given in (part for whole in found for part in _in_our_words(whole)):
        field = known.get(ALIASES.get(given.name, given.name))
        if field is None:
            notes.append(_without_counterpart(given))
        else:
            values[field.part][field.name] = convert(field, given)
    structs: dict[str, Any] = {part: struct(**values[part]) for part, struct in parts().items()}
    config = Config(**structs)
    _check(config)
    return config


def _in_our_words(given: GivenValue) -> list[GivenValue]:
    """Split a LightLLM setting: values that are settings here become those; the others keep the old name."""
    means, words = MEANINGS.get(given.name, {}), _words(given.value)
    ours = [GivenValue(*means[word.lower()], given.source, True) for word in words if word.lower() in means]
    rest = [word for word in words if word.lower() not in means]
    return [*ours, given._replace(value=rest)] if ours and rest else ours or [given]


def _without_counterpart(given: GivenValue) -> str:
    """The note for a LightLLM setting that is ignored. ConfigError for one that is refused."""
    other = OTHERS[given.name]
    if other.refuses(_words(given.value)):
        raise ConfigError(f"{given.source} is not supported: {other.why}", param=given.name)
    return f"{given.source} has no effect: {other.why}"


def convert(field: FlagField, given: GivenValue) -> Any:
    """The value in the type of the field.

    In text, spaces or commas separate several values, and LightLLM's words for "not given" stand for the default.
    """
    words = _words(given.value)
    if given.text and len(words) == 1 and words[0].lower() in DEFAULT_WORDS.get(field.name, ("none", "null")):
        return field.default
    value = given.value
    if field.many:
        value = " ".join(words).replace(",", " ").split() if given.text else _list(value)
    try:
        return msgspec.convert(value, field.type, strict=not given.text)
    except msgspec.ValidationError:
        message = f"{given.source}: expected {expected(field.type)}, got {' '.join(words)!r}"
        raise ConfigError(message, param=field.name) from None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _words(value: Any) -> list[str]:
    return [str(word).strip() for word in _list(value)]


def _check(config: Config) -> None:
    """ConfigError for settings that contradict each other."""
    longest_input = ("max-req-input-len", config.engine.max_req_input_len)
    longest = ("max-req-total-len", config.engine.max_req_total_len)
    memory = ("max-total-token-num", config.engine.max_total_token_num)
    _ordered(longest_input, longest, gap=1)
    _ordered(longest, memory, gap=0)
    _ordered(longest_input, memory, gap=1)


def _ordered(small: tuple[str, int | None], large: tuple[str, int | None], *, gap: int) -> None:
    (low_name, low), (high_name, high) = small, large
    if low is not None and high is not None and low + gap > high:
        relation = "below" if gap else "at most"
        raise ConfigError(f"--{low_name} ({low}) must be {relation} --{high_name} ({high})")
