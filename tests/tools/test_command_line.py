"""The command line that tools share."""

from __future__ import annotations

import pytest

from tools.harness.command_line import SKIPPED, ToolParser, skip, words


def parser() -> ToolParser:
    made = ToolParser("A tool.", rounds=1, parts=["a"])
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--parts", type=words, default=["a", "b"])
    return made


def test_smoke_changes_what_is_not_given() -> None:
    assert vars(parser().parse([])) == {"smoke": False, "rounds": 10, "parts": ["a", "b"]}
    assert vars(parser().parse(["--smoke"])) == {"smoke": True, "rounds": 1, "parts": ["a"]}
    assert vars(parser().parse(["--smoke", "--parts", "b,,c"])) == {"smoke": True, "rounds": 1, "parts": ["b", "c"]}


def test_what_is_unknown_is_an_error_or_somebody_elses(capsys: pytest.CaptureFixture[str]) -> None:
    flags, rest = parser().parse_some(["--model-dir", "x", "--rounds", "3"])
    assert (flags.rounds, rest) == (3, ["--model-dir", "x"])
    with pytest.raises(SystemExit):
        parser().parse(["--round", "3"])
    assert "unrecognized arguments: --round 3" in capsys.readouterr().err


def test_a_tool_that_lacks_something_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        skip("no GPU")
    assert ended.value.code == SKIPPED
    assert capsys.readouterr().err == "skipped: no GPU\n"
