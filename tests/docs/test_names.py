"""What the pages name is there: flags, fields, routes and metrics, also those of the tables of migration."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from msgspec import Struct

from lightllm_mp.cli.flags.fields import ENV_PREFIX, fields
from lightllm_mp.cli.flags.lightllm import ALIASES, MEANINGS, OTHERS
from lightllm_mp.cli.main import COMMANDS, main
from tests.docs.pages import PAGES as ALL_PAGES
from tests.docs.pages import prose
from tests.paths import ROOT
from tests.repository.test_apis_page import BODIES

DOCS = ROOT / "docs"
FLAGS = {field.flag: field for field in fields().values()}
SERVE = {*FLAGS, "--config", "--help-lightllm"}
WORDS = {"is"}
"""What follows the program's name where it is no command: `lightllm-mp is serving`."""
OTHER_PROGRAMS = {"--shm-size", "--init"}
"""Flags in the text that are not of `lightllm-mp serve`."""
FIELDS = {name for body in BODIES for name in body.__struct_encode_fields__}
PAGES = ("quickstart", "configuration", "tuning", "deployment", "troubleshooting", "examples", "python", "page")
"""Pages whose flags are those of `lightllm-mp serve`."""


def code(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, its flags) of the lines that run `lightllm-mp COMMAND`, without what a comment says."""
    line = r"(?:^|[`/])lightllm-mp ([a-z]+)\b([^|&`\n]*)"
    for found in re.findall(line, text.replace("\\\n", " "), re.MULTILINE):
        own = re.split(r" #| -- ", found[1])[0]  # behind -- stand the flags of another program
        yield found[0], re.findall(r"(?<!\S)--[a-z][a-z_-]*", own)


@cache
def flags_of(command: str) -> set[str]:
    """The flags that its help lists."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([command, "--help"])
    heads = re.findall(r"^  (-.+?)(?:  |$)", shown.getvalue(), re.MULTILINE)
    return {flag for head in heads for flag in re.findall(r"--[a-z][a-z-]*", head)}


@pytest.mark.parametrize("name", PAGES)
def test_flags_exist(name: str) -> None:
    words = [re.match(r"--[a-z][a-z_-]*", word) for word in code(prose(DOCS / f"{name}.md"))]
    assert {word[0].replace("_", "-") for word in words if word} - SERVE - OTHER_PROGRAMS == set()


PAGES_WITH_COMMANDS = [page for page in ALL_PAGES if "lightllm-mp " in page.read_text("utf-8")]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_exist_and_have_these_flags(page: Path) -> None:
    wrong = []
    for command, flags in commands(page.read_text("utf-8")):
        if command not in COMMANDS:
            wrong += [command] * (command not in WORDS)
        else:
            wrong += [f"{command} {flag}" for flag in flags if flag.replace("_", "-") not in flags_of(command)]
    assert wrong == []


def test_every_command_and_flag_stands_in_its_section() -> None:
    parts = re.split(r"^## lightllm-mp (\w+)$", (DOCS / "commands.md").read_text("utf-8"), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(sections) == set(COMMANDS)
    for command in set(COMMANDS) - {"serve"}:
        named = {flag for word in code(sections[command]) for flag in re.findall(r"--[a-z][a-z-]*", word)}
        assert flags_of(command) - named <= {"--help"}, command


def test_every_variable_stands_in_the_page() -> None:
    sources = "".join(file.read_text("utf-8") for file in (ROOT / "lightllm_mp").rglob("*.py"))
    read = set(re.findall(r"""["'](LIGHTLLM_MP_[A-Z_]+[A-Z])["'$]""", sources))
    flags = {ENV_PREFIX + name.upper() for name in fields()}
    assert len(read) > 8
    assert (
        read - flags - set(re.findall(r"LIGHTLLM_MP_[A-Z_]+", (DOCS / "configuration.md").read_text("utf-8"))) == set()
    )


def test_codes_of_errors_are_in_the_reference() -> None:
    table = (DOCS / "apis.md").read_text("utf-8").split("## Errors")[1].split("## ")[0]
    known = {word for line in table.splitlines() if line.startswith("|") for word in code(line)}
    page = (DOCS / "troubleshooting.md").read_text("utf-8").split("## A request fails")[1].split("## ")[0]
    named = {word for line in page.splitlines() if re.match(r"\| [45]\d\d ", line) for word in code(line.split("|")[1])}
    assert len(named) > 6
    assert {word for word in named if word.islower()} - known == set()


def test_variables_of_compose_are_its_own() -> None:
    table = (DOCS / "deployment.md").read_text("utf-8").split("| variable of compose.yaml |")[1].split("\n\n")[0]
    named = {word for line in table.splitlines() for word in code(line.split("|")[1] if "|" in line else "")}
    assert named == set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text("utf-8")))


def tables(first: str) -> list[list[str]]:
    """Rows of the tables of docs/migration.md whose first column is named so and whose second is "here"."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", (DOCS / "migration.md").read_text("utf-8"), re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines()]
        if head[:2] == [first, "here"]:
            found += rows
    return found


ROWS = [(peer, row) for peer in ("LightLLM", "vLLM", "Ollama") for row in tables(peer)]


def exists(word: str) -> bool:
    """Whether the word is a flag (with a value of its type), a route, a metric's name or a field of a request."""
    if word.startswith("--"):
        flag, _, value = word.partition(" ")
        return flag in FLAGS and (not value or value in str(FLAGS[flag].type) or bool(re.match(r"[0-9]", value)))
    if route := re.fullmatch(r"(?:[A-Z]+ |http://localhost:8000)(/[\w/]+)", word):
        return f'"{route[1]}' in (ROOT / "lightllm_mp/actors/http/app.py").read_text("utf-8") or route[1] == "/v1"
    return word in FIELDS or word.startswith("lightllm_")


@pytest.mark.parametrize(("peer", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else value[0][:40])
def test_rows_of_migration(peer: str, row: list[str]) -> None:
    here = row[1]
    assert code(row[0]) or peer == "LightLLM"
    if code(row[0]) and code(here):
        assert [word for word in code(here) if not word.startswith("X-") and not exists(word)] == []
    elif peer != "LightLLM":
        assert here == "-"
        assert len(row) == 3, "a row without a counterpart says why"


def test_names_of_lightllm_are_its_own() -> None:
    known = {*ALIASES, *MEANINGS, *OTHERS, *fields(), "eos_id"}
    page = (DOCS / "migration.md").read_text("utf-8").split("## From vLLM")[0]
    assert set(re.findall(r"`--([a-z0-9_]+)[ `]", page)) - known == set()


def test_the_checks_see() -> None:
    assert not exists("--no-such-flag")
    assert not exists("--kv-cache-dtype int3")
    assert not exists("POST /v1/nothing")
    assert not exists("no_such_field")
    text = "```bash\nlightllm-mp serve --a \\\n  --b # --c\n```\nand `lightllm-mp doctor` --d\n"
    assert list(commands(text)) == [("serve", ["--a", "--b"]), ("doctor", [])]
    assert "--num-requests" in flags_of("bench")
    assert len(ROWS) > 60
    assert issubclass(BODIES[0], Struct)
