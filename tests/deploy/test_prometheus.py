"""deploy/prometheus: promtool accepts the rules and runs their tests; each alert has a test and is in the runbook."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy.programs import output, program
from tests.paths import ROOT
from tools.operations import prometheus_rule

PROMTOOL = program("promtool")
FOLDER = ROOT / "deploy" / "prometheus"
RULES, TESTS = FOLDER / "lightllm-mp.rules.yaml", FOLDER / "lightllm-mp.tests.yaml"
RUNBOOK = (ROOT / "docs" / "operations.md").read_text("utf-8")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(rules())} rules found" in output(PROMTOOL, "check", "rules", RULES)


def test_promtool_runs_their_tests() -> None:
    output(PROMTOOL, "test", "rules", TESTS)


def test_each_alert_is_tested_silent_and_firing() -> None:
    found: dict[str, set[bool]] = {}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test.get("alert_rule_test", ()):
            found.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert found == {name: {False, True} for name in alerts()}


def test_each_alert_is_in_the_runbook() -> None:
    section = RUNBOOK.split("\n## Alerts\n")[1]
    pages = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))
    assert list(pages) == list(alerts())
    for name, page in pages.items():
        assert re.findall(r"^\*\*(.+?)\*\*:", page, re.MULTILINE) == ["Means", "Look at", "Do"], name
        assert alerts()[name]["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert alerts()[name]["labels"]["severity"] in ("critical", "warning")


def test_the_operator_gets_the_same_rules() -> None:
    told = "run python -m tools.operations.prometheus_rule --write"
    assert prometheus_rule.OBJECT.read_text() == prometheus_rule.prometheus_rule(), told
    assert yaml.safe_load(prometheus_rule.OBJECT.read_text())["spec"] == yaml.safe_load(RULES.read_text())
