"""SECURITY.md names what is there."""

from __future__ import annotations

import re

from tests.repository.package import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")


def test_every_file_it_names_exists() -> None:
    named = set(re.findall(r"`((?:tests|lightllm_mp)/[\w/.]+)`", PAGE))
    assert len(named) > 15
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_flag_it_names_exists() -> None:
    from lightllm_mp.cli.flags.fields import fields

    flags = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert flags - {field.flag for field in fields().values()} == set()


def test_every_class_of_attacks_has_a_test() -> None:
    rows = re.findall(r"^\| ([A-J])\. .*\|$", PAGE, re.MULTILINE)
    assert rows == list("ABCDEFGHIJ")
    assert all("`tests/" in line for line in PAGE.splitlines() if re.match(r"\| [A-J]\. ", line))
