"""A short form of scripts/chaos.py: every actor and every fault once or so, with instant tokens and with images."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.chaos import chaos
from scripts.faults.samples import Samples
from scripts.faults.server import Setting

FAULTS, SECONDS = 30, 60.0
SETTINGS = (Setting("mock", hooks=True, ranks=2), Setting("images", hooks=True))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.kind)
def test_nothing_is_lost_and_nothing_is_left_behind(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    lines = io.StringIO()
    report = chaos(setting, seconds=SECONDS, total=FAULTS, clients=12, seed=7, stream=lines)
    report.show()
    total = report.total()
    assert report.good, capsys.readouterr().out
    assert 8 <= total["injected"] <= FAULTS
    assert total["effective"] >= total["injected"] // 2
    assert total["identical"] == total["finished"] > 100
    assert total["accepted"] == total["finished"] + total["left"] + total["broken"]
    events = [json.loads(line)["event"] for line in lines.getvalue().splitlines()]
    assert events.count("fault") == total["injected"]


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
