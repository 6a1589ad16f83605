"""Writes the rules of deploy/prometheus as an object of the Prometheus operator.

    python -m tools.operations.prometheus_rule            # prints it
    python -m tools.operations.prometheus_rule --write    # into deploy/kubernetes/parts/monitoring

A test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tools.harness.command_line import ToolParser

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "lightllm-mp.rules.yaml"
OBJECT = DEPLOY / "kubernetes" / "parts" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Made of deploy/prometheus/lightllm-mp.rules.yaml by python -m tools.operations.prometheus_rule --write
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: lightllm-mp
  labels:
    app.kubernetes.io/name: lightllm-mp
spec:
"""


def prometheus_rule() -> str:
    groups = RULES.read_text().partition("\ngroups:\n")[2]
    return HEAD + "  groups:\n" + "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(True))


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--write", action="store_true", help="into deploy/kubernetes")
    if parser.parse(argv).write:
        OBJECT.write_text(prometheus_rule())
    else:
        print(prometheus_rule(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
