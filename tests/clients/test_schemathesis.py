"""schemathesis asks every route of /openapi.json what the document allows, and what it does not: the server has no
fault, and answers as the document says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.actors.mock_server import write_mock_model
from tests.clients.environment import KEY, VENV, environment, needs_clients
from tests.paths import ROOT

pytestmark = needs_clients

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
EXAMPLES = 5
"""Of each operation, beside those that cover its schema."""
UNTRUE = "positive_data_acceptance"
"""A schema cannot say which fields exclude each other, so what it allows may be refused."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Every process but the model."""
    folder = write_mock_model(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    (tmp_path / "keys").write_text(KEY + "\n")
    flags = ["--model-dir", str(folder), "--load-format", "dummy", "--port", "0", "--disable-access-log", "--no-ui"]
    flags += ["--api-key-file", str(tmp_path / "keys"), "--max-restarts", "0", "--log-level", "error"]
    command = [sys.executable, "-m", "tests.actors.mock_server", "serve", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            found = ""
            for line in process.stderr:
                if line.startswith("  url"):
                    found = line.split()[1]
                if line.startswith("  try"):  # the last one of the block
                    break
            assert found, process.wait()
            yield found
            assert process.poll() is None, "the server has ended"
        finally:
            process.terminate()


@pytest.mark.slow
def test_every_route(address: str, tmp_path: Path) -> None:
    config = str(Path(__file__).with_name("schemathesis.toml"))
    options = ["--exclude-checks", UNTRUE, "--max-examples", str(EXAMPLES), "--phases", "coverage,fuzzing", "--seed=1"]
    options += ["--header", f"Authorization: Bearer {KEY}", "--no-color", "--output-sanitize", "false"]
    found = subprocess.run(
        [str(VENV / "bin" / "st"), "--config-file", config, "run", f"{address}/openapi.json", *options],
        env=environment(address, tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stdout + found.stderr
