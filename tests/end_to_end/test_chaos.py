"""A short run of tools.faults.chaos: every actor and every fault about once, with instant tokens and with images."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tools.faults.chaos import chaos, show_samples
from tools.faults.clients import Outcome
from tools.faults.injector import Round
from tools.faults.report import Report, in_words
from tools.faults.samples import Samples
from tools.faults.server import Setting
from tools.harness.procfs import alive, descendants

FAULTS, SECONDS = 12, 28.0
SETTINGS = (Setting("mock", hooks=True, ranks=2), Setting("images", hooks=True), Setting("embedding", hooks=True))
ACTORS = ["detokenizer", "guide", "http", "router", "tokenizer", "worker0"]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.kind)
def test_nothing_is_lost_and_nothing_is_left_behind(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    lines = io.StringIO()
    report = chaos(setting, seconds=SECONDS, total=FAULTS, clients=12, seed=7, stream=lines)
    report.show()
    total = report.total()
    assert report.good, capsys.readouterr().out
    assert 5 <= total["injected"] <= FAULTS
    assert total["effective"] >= total["injected"] // 2
    assert total["identical"] == total["finished"] > 30
    assert total["accepted"] == total["finished"] + total["left"]
    events = [json.loads(line)["event"] for line in lines.getvalue().splitlines()]
    assert events.count("fault") == total["injected"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setting", [Setting("mock", hooks=True), Setting("encoder")], ids=lambda setting: setting.kind)
def test_the_death_of_each_process_changes_no_answer(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests of all APIs: chats, tools, schemas, lists of prompts, messages, responses, embeddings."""
    report = chaos(setting, seconds=SECONDS, total=len(ACTORS), clients=8, seed=3, faults=["kill"])
    report.show()
    assert report.good, capsys.readouterr().out
    assert sorted(round.actor for round in report.rounds) == ACTORS
    total = report.total()
    assert total["effective"] == total["injected"]
    assert total["identical"] == total["finished"] > 30
    assert total["accepted"] == total["finished"] + total["left"]


def test_totals_in_one_line() -> None:
    report = Report()
    report.rounds = [Round("http", "kill", 0.0, replaced=["http"]), Round("http", "term", 0.0)]
    for end, broken, refused in (("identical", 1, 0), ("identical", 0, 2), ("left", 0, 0), ("lost", 0, 1)):
        report.add(Outcome("greedy", 0.0, end, broken=broken, refused=refused))
    assert in_words(report.total()) == (
        "2 faults injected, 1 effective; 4 requests accepted, 2 finished, 2 identical, 0 connections resumed, "
        "1 not accepted when http died (and sent again), 3 refused (and tried again), 1 left by the client, 1 lost, "
        "0 different"
    )
    assert not report.good


def test_a_process_that_outlives_its_parent_is_seen() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            seen = descendants(parent.pid)
            assert {pid for pid, _ in seen} == alive_pids(seen) == {parent.pid, child}
            parent.kill()
            parent.wait(10)
            assert alive_pids(seen) == {child}
            assert not descendants(parent.pid)
        finally:
            os.kill(child, signal.SIGKILL)


def alive_pids(seen: set[tuple[int, int]]) -> set[int]:
    return {pid for pid, _ in alive(seen)}


def test_what_grows_is_seen() -> None:
    samples = Samples()
    for second in range(120):
        wave = math.sin(second / 3)
        samples.add(
            float(second),
            {
                "descriptors: still": 40 + wave,
                "descriptors: leaks": 40 + wave + second / 4,
                "resident MiB: falls": 90.0,
            },
        )
    summary = samples.summary()
    assert [name for name, values in summary.items() if not values["flat"]] == ["descriptors: leaks"]
    assert summary["descriptors: leaks"]["slope_per_hour"] == pytest.approx(900, rel=0.1)


def test_a_soak_is_drawn_and_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, report = Samples(begin=100.0), Report()
    report.rounds = [Round("http", "kill", 130.0, recovered=131.0, replaced=["http"])]
    for second in range(0, 60, 2):
        samples.add(
            float(second), {"descriptors: http": 40.0, "resident MiB: http": math.nan if second == 30 else 90.0}
        )
    assert show_samples(samples, report, str(tmp_path / "soak"))
    with Image.open(tmp_path / "soak.png") as picture:
        assert len(picture.getcolors(1 << 20) or ()) > 4
    found = json.loads((tmp_path / "soak.json").read_text())
    assert (found["flat"], found["not_flat"], found["total"]["injected"]) == (True, [], 1)
    assert found["series"]["resident MiB: http"]["mean"] == 90.0
    assert "all flat" in capsys.readouterr().out
