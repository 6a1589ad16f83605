"""Writes the table of model families into docs/models.md, from the registry and the golden folders.

    python -m tools.models_table            # prints what the table should be
    python -m tools.models_table --write    # puts it into docs/models.md

A test compares the two, so that the page cannot drift.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lightllm_mp.models.families import FAMILIES, Family, by_hf_config
from tools.harness.command_line import ToolParser

ROOT = Path(__file__).resolve().parents[1]
PAGE, GOLDENS = ROOT / "docs" / "models.md", ROOT / "tests" / "goldens"
BEGIN, END = "<!-- table: tools/models_table.py -->", "<!-- end of table -->"


def goldens() -> dict[str, list[str]]:
    """Golden folders by the family that reads them."""
    found: dict[str, list[str]] = {family.name: [] for family in FAMILIES}
    for folder in sorted(GOLDENS.iterdir()):
        config = folder / "config.json"
        if (folder / "golden.json").is_file() and config.is_file():
            found[by_hf_config(json.loads(config.read_text()), where=folder.name).name].append(folder.name)
    return found


def compared(family: Family) -> bool:
    """Whether a test compares random checkpoints of the family with transformers: it names the configuration class."""
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "models").rglob("test_transformers*.py"))
    classes = {name.lower() for name in re.findall(r"transformers\.(\w+)Config\b", tests)}
    return any(name.replace("_", "") in classes for name in family.model_types)


def lines(family: Family) -> int:
    """Lines of the file that declares the family; families may share a file."""
    return len(inspect.getsource(sys.modules[family.read_hf.__module__]).splitlines())


def gguf(family: Family) -> str:
    """The values of `general.architecture` in its GGUF files."""
    names = (family.gguf_written_as,) if family.gguf_written_as else family.gguf_architectures
    return ", ".join(f"`{name}`" for name in names)


def table() -> str:
    by_family = goldens()
    rows = ["| family | models | `model_type` | GGUF | golden outputs | transformers | lines |", "|---" * 7 + "|"]
    for family in FAMILIES:
        types = ", ".join(f"`{name}`" for name in family.model_types)
        folders = ", ".join(by_family[family.name])
        told = "yes" if compared(family) else ""
        row = (family.name, family.models, types, gguf(family), folders, told, lines(family))
        rows.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/models.md")
    if parser.parse(argv).write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}")
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
