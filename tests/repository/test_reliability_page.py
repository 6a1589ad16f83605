"""docs/reliability.md has a line for everything it should, and names what is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.repository.package import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
NAMED = re.findall(r"`((?:tests|tools)/[\w/]+\.py)(?:::(\w+))?`", PAGE)


@cache
def defined(file: str) -> set[str]:
    """Functions and other names at the top level of a file. ast only: nothing is imported."""
    found: set[str] = set()
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def rows(section: str) -> list[tuple[str, str]]:
    """First and last cell of each line of a section's table."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [(cells[0].strip(), cells[-1].strip()) for cells in lines[2:]]


def test_everything_named_exists() -> None:
    assert len(NAMED) > 150
    assert {file for file, _ in NAMED if not (ROOT / file).is_file()} == set()
    assert [f"{file}::{name}" for file, name in NAMED if name and name not in defined(file)] == []


def test_a_test_is_named_as_one() -> None:
    """A helper, or a test that is collected no more, proves nothing."""
    assert {name for _, name in NAMED if name and not name.lower().startswith("test")} == set()


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("Scenarios", [str(number) for number in range(1, 105)]),
        ("Points that have to hold", [str(number) for number in range(1, 15)]),
        ("Where LightLLM failed", [f"W{number}" for number in range(1, 25)]),
    ],
)
def test_no_line_is_missing(section: str, keys: list[str]) -> None:
    assert [key for key, _ in rows(section)] == keys


def test_every_class_of_advisories() -> None:
    assert [key[0] for key, _ in rows("Advisories by class")] == list("ABCDEFGHIJ")


@pytest.mark.parametrize("section", re.findall(r"^## (.+)$", PAGE, re.MULTILINE))
def test_every_line_names_a_test_or_a_reason(section: str) -> None:
    shown = rows(section)
    assert shown
    assert [key for key, cell in shown if not re.search(r"`(?:tests|scripts)/| above$|^does not apply: ", cell)] == []
