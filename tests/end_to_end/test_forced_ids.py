"""Steps jump over forced ids. The answer is the same with run-ahead, which jumps less, and after a process dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from lightllm_mp import Engine, sampling_parameters
from lightllm_mp.messages import Guide
from lightllm_mp.offline import Completion
from tests.end_to_end.conftest import settings

KEYS = ("the_name_of_the_person", "the_favourite_colour", "the_number_of_the_house_in_the_street")
SCHEMA = {
    "type": "object",
    "properties": {
        KEYS[0]: {"type": "string", "maxLength": 12},
        KEYS[1]: {"enum": ["a dark shade of red", "bright green"]},
        KEYS[2]: {"type": "integer", "minimum": 1, "maximum": 999},
    },
    "required": list(KEYS),
    "additionalProperties": False,
}


RULES = {"guided_json": SCHEMA, "max_new_tokens": 100, "do_sample": True, "temperature": 1.0, "seed": 4}


def answers(run_ahead: int) -> list[Completion]:
    with engine(run_ahead) as running:
        return running.generate("A person:", n=3, **RULES)


def killed(victim: str) -> list[int]:
    """The ids of one answer during which a process is killed."""
    with engine(0) as running:
        stream = running.stream("A person:", **RULES)
        seen = [next(stream).id for _ in range(4)]
        os.kill(pid_of(victim), signal.SIGKILL)
        return seen + [event.id for event in stream if event.id >= 0]


def engine(run_ahead: int) -> Engine:
    usual = settings()
    return Engine(replace(usual, engine=replace(usual.engine, run_ahead=run_ahead)))


def pid_of(name: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if parent == os.getpid() and name in words:
                return int(entry.name)
    raise AssertionError(name)


@pytest.fixture(autouse=True)
def jumping(monkeypatch: pytest.MonkeyPatch, default_model: Path) -> None:
    usual = sampling_parameters.guide

    def jumps(parameters: sampling_parameters.RequestParameters) -> Guide | None:
        guide = usual(parameters)
        return guide and replace(guide, jump=True)

    monkeypatch.setattr(sampling_parameters, "guide", jumps)


def test_the_same_answers() -> None:
    found = answers(0)
    assert all(json.loads(one.text).keys() == set(KEYS) for one in found)
    assert all(one.logprobs.count(0.0) > 15 for one in found), "these were jumped over"
    ids = [one.token_ids for one in found]
    assert [one.token_ids for one in answers(1)] == ids
    for victim in ("guide", "router", "worker0"):
        assert killed(victim) == ids[0]
