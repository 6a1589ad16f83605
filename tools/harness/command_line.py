"""The command line of a tool: its own flags and --smoke, which every tool has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

SKIPPED = 77
"""Exit code of a tool that lacks something on this machine: a GPU, a compiler."""


class ToolParser(argparse.ArgumentParser):
    """`smoke`: the defaults of flags under --smoke; a given flag overrules them."""

    def __init__(self, doc: str | None, **smoke: Any) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self._smoke = smoke
        self.add_argument("--smoke", action="store_true", help="a tiny run in seconds: shows that it works, no figures")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        flags, unknown = self.parse_some(argv)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return flags

    def parse_some(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
        """The flags, and the arguments for another program."""
        flags, unknown = self.parse_known_args(argv)
        if flags.smoke:
            self.set_defaults(**self._smoke)
            flags, unknown = self.parse_known_args(argv)
        return flags, unknown


def words(text: str) -> list[str]:
    """The type of a flag with a list of words, separated by commas."""
    return [word for word in text.split(",") if word]


def skip(reason: str) -> NoReturn:
    """Ends the tool: this machine lacks something that it needs."""
    print(f"skipped: {reason}", file=sys.stderr)
    sys.exit(SKIPPED)
