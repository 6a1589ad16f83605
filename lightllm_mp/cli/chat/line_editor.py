"""Reads typed lines with the standard library's readline: completion, several lines, the session's history."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable

try:
    import readline
except ImportError:  # Python was built without it; lines are then plain
    readline = None  # type: ignore[assignment]

PROMPT, MORE = "> ", ". "
BLOCK = '"""'
BINDINGS = ("tab: complete", "set enable-bracketed-paste on", r'"\e\C-m": "\C-v\C-j"')
LIBEDIT_BINDINGS = ("bind ^I rl_complete",)
PATH_COMMANDS = ("/image", "/load", "/save")


class LineEditor:
    """A backslash at the end continues a line. Three quotes begin and end a block. Alt-Enter adds a new line, and
    pasted text keeps its lines."""

    def __init__(self, commands: Iterable[str], read_line: Callable[[str], str] = input) -> None:
        self._commands = sorted(commands)
        self._read_line = read_line
        if readline is not None:
            readline.set_completer(self.complete)
            readline.set_completer_delims(" \t\n")
            for binding in LIBEDIT_BINDINGS if "libedit" in (readline.__doc__ or "") else BINDINGS:
                readline.parse_and_bind(binding)

    def read(self) -> str:
        """The user's next input. EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        lines = [self._read_line(PROMPT)]
        if lines[0].lstrip().startswith(BLOCK):
            lines[0] = lines[0].lstrip()[len(BLOCK) :]
            while not lines[-1].rstrip().endswith(BLOCK):
                lines.append(self._read_line(MORE))
            lines[-1] = lines[-1].rstrip()[: -len(BLOCK)]
            return "\n".join(lines).strip("\n")
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read_line(MORE))
        return "\n".join(lines)

    def complete(self, word: str, state: int) -> str | None:
        """readline's completer: commands at the start of a line, paths after commands that take one."""
        line = readline.get_line_buffer() if readline is not None else word
        options = self.options(word, line)
        return options[state] if state < len(options) else None

    def options(self, word: str, line: str) -> list[str]:
        if " " not in line.lstrip():
            return [command + " " for command in self._commands if word and command.startswith(word)]
        if line.split()[0] not in PATH_COMMANDS:
            return []
        found = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
        return [path + "/" if os.path.isdir(path) else path for path in found]
