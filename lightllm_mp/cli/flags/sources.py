"""Reads settings from the command line, environment variables and a file. resolve.py converts the values."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightllm_mp.cli.flags.fields import ENV_PREFIX, fields, parts
from lightllm_mp.cli.flags.help import HelpAction, lightllm_help, serve_help
from lightllm_mp.cli.flags.lightllm import ALIASES, OTHERS
from lightllm_mp.cli.flags.parser import Parser, nearest, parse
from lightllm_mp.errors import ConfigError


class GivenValue(NamedTuple):
    """A value as it was read. `source`: its name in messages. `text`: the value is text and has no type yet."""

    name: str
    value: Any
    source: str
    text: bool


def from_flags(argv: Sequence[str]) -> tuple[list[GivenValue], str | None]:
    """The settings on the command line, and the path that `--config` names."""
    known = fields()
    parser = Parser(prog="lightllm-mp serve", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action=HelpAction, nargs=0, const=serve_help)
    parser.add_argument("--help-lightllm", action=HelpAction, nargs=0, const=lightllm_help)
    parser.add_argument("--config")
    for field in known.values():
        if field.type is bool:
            parser.add_argument(field.flag, dest=field.name, nargs="?", const="true")
        elif field.many:
            parser.add_argument(field.flag, dest=field.name, nargs="+", action="extend")
        else:
            parser.add_argument(field.flag, dest=field.name)
    for name in (*ALIASES, *OTHERS):
        parser.add_argument("--" + name.replace("_", "-"), dest=name, nargs="*")
    given = vars(parse(parser, argv, ["--config", *(field.flag for field in known.values())]))
    file = given.pop("config", None)
    return [_from_flag(name, value) for name, value in given.items()], file


def _from_flag(name: str, value: Any) -> GivenValue:
    if name in ALIASES:
        value = " ".join(value) or "true"
    return GivenValue(name, value, "--" + name.replace("_", "-"), True)


def from_environment(environ: Mapping[str, str], notes: list[str]) -> list[GivenValue]:
    """Settings from LIGHTLLM_MP_<FIELD>. An empty variable counts as not set."""
    given = []
    for name in fields():
        variable = ENV_PREFIX + name.upper()
        value = environ.get(variable, "").strip()
        if name == "port" and value.startswith("tcp://"):
            # If a Kubernetes service is called lightllm-mp, every pod has LIGHTLLM_MP_PORT=tcp://...
            notes.append(f"{variable}={value} has no effect: it is a service link of Kubernetes")
        elif value:
            given.append(GivenValue(name, value, variable, True))
    return given


def from_file(file: str) -> list[GivenValue]:
    """Settings from a file. Keys are field names, at the top level or in a table named as their part (`[engine]`)."""
    given = []
    for key, value in _read(file).items():
        entries = value.items() if key in parts() and isinstance(value, dict) else [(key, value)]
        given += [GivenValue(name.replace("-", "_"), entry, f"{file}: {name}", False) for name, entry in entries]
    names = {*fields(), *ALIASES, *OTHERS}
    for entry in given:
        if entry.name not in names:
            raise ConfigError(f"{file}: unknown key {entry.name}{nearest(entry.name, fields())}", param=entry.name)
    return given


def _read(file: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
        content = json.loads(text) if file.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}", param="config") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {file}: {error}", param="config") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: expected an object with settings", param="config")
    return content
