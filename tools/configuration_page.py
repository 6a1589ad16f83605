"""Writes the tables of flags into docs/configuration.md, and those of LightLLM's flags into docs/migration.md.

    python -m tools.configuration_page            # prints what the tables should be
    python -m tools.configuration_page --write    # puts them into the pages

They come from config.py and the table of LightLLM's flags. A test compares the two, so that the pages cannot drift.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightllm_mp.cli.flags.fields import FlagField, fields, parts
from lightllm_mp.cli.flags.help import field_docs, metavar
from lightllm_mp.cli.flags.lightllm import ACCEPTED, ALIASES, BY_VALUE, LATER, MEANINGS
from tools.harness.command_line import ToolParser

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- tables: tools/configuration_page.py -->", "<!-- end of tables -->"
_CODE = re.compile(r"(?<![\w`/-])(--[a-z][\w-]+|/[a-z][\w/]+[A-Z]*|[a-z]+(?:_[a-z]+)+)(?![\w`])")
"""Words that a help text does not quote: flags, routes, names with underscores."""


def flag_tables() -> str:
    """A section for each part of the configuration."""
    docs, sections = field_docs(), []
    for part, struct in parts().items():
        title = (struct.__doc__ or part).splitlines()[0].rstrip(".")
        rows = [_row(field, docs[field.name]) for field in fields().values() if field.part == part]
        sections.append("\n".join([f"### {title}", "", "| flag | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(sections)


def lightllm_tables() -> str:
    """How the server treats LightLLM's flags that have no flag of the same name here."""
    renamed = [(f"`--{old}`", f"`{_flag(new)}`") for old, new in ALIASES.items()]
    for name, values in MEANINGS.items():
        for meaning in dict.fromkeys(values.values()):
            words = ", ".join(f"`{word}`" for word, other in values.items() if other == meaning)
            renamed.append((f"`--{name}` {words}", f"`{_flag(meaning[0])} {meaning[1]}`"))
    by_value = [(f"`--{name}`", _words(values), why) for name, (values, why) in BY_VALUE.items()]
    return "\n\n".join(
        (
            "### Flags of LightLLM with another name here",
            _table(("LightLLM", "here"), renamed),
            "### Flags of LightLLM without effect here",
            _table(("LightLLM", "because"), [(_words(names, "--"), why) for why, names in ACCEPTED.items()]),
            "### Flags of LightLLM that are refused unless they have these values",
            _table(("LightLLM", "values", "because"), by_value),
            "### Flags of LightLLM that are refused",
            _table(("LightLLM", "because"), [(_words(names, "--"), why) for why, names in LATER.items()]),
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _words(names: str, prefix: str = "") -> str:
    return ", ".join(f"`{prefix}{name}`" for name in names.split())


def _flag(name: str) -> str:
    return fields()[name].flag


def _row(field: FlagField, doc: str) -> str:
    value, text = metavar(field), _CODE.sub(r"`\1`", doc).replace("|", "\\|")
    if value.startswith("{"):  # a long list of words does not break in the narrow first column
        value, text = "", f"{_words(value.strip('{}').replace(',', ' '))}. {text}"
    return f"| `{f'{field.flag} {value}'.strip()}` | {_default(field.name, field.default)} | {text} |"


def _default(name: str, value: Any) -> str:
    if value is None or value is False or value == ():
        return ""
    if "bytes" in name or name == "journal_size":
        return f"`{value}` ({value >> 20} MiB)"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


TABLES = {"configuration.md": flag_tables, "migration.md": lightllm_tables}
"""Page of docs/ -> the text between its marks."""


def written(page: str) -> str:
    """The tables as they stand in the page."""
    return (DOCS / page).read_text("utf-8").split(BEGIN)[1].split(END)[0].strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--write", action="store_true", help="into the pages")
    write = parser.parse(argv).write
    for page, tables in TABLES.items():
        if write:
            before, rest = (DOCS / page).read_text("utf-8").split(BEGIN)
            (DOCS / page).write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}", "utf-8")
        else:
            print(tables())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
