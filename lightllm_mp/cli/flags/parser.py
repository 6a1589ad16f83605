"""argparse with dashes or underscores, without abbreviations; every mistake is a `ConfigError` of one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from lightllm_mp.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of printing its usage and exiting."""

    @property
    def actions(self) -> list[argparse.Action]:
        """The added flags and positional arguments."""
        return self._actions

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def parse(parser: Parser, argv: Sequence[str], names: Iterable[str] | None = None) -> argparse.Namespace:
    """Parse `argv`. ConfigError for an unknown flag suggests the nearest of `names`, by default the parser's."""
    if names is None:
        names = [flag for action in parser.actions for flag in action.option_strings]
    space, unknown = parser.parse_known_args(dashed(argv))
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise ConfigError(f"unexpected argument {word!r}")
        raise ConfigError(f"unknown flag {word}{nearest(word, names)}")
    return space


def dashed(argv: Sequence[str]) -> list[str]:
    """Turns `--max_total_token_num=1` into `--max-total-token-num=1`. Values stay as they are."""
    out = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            word = flag.replace("_", "-") + equals + value
        out.append(word)
    return out


def nearest(word: str, names: Iterable[str]) -> str:
    """`; did you mean X?`, or "" if no name is similar."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""
