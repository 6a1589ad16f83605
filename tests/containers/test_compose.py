"""compose.yaml with a program that reads it: the default service starts, answers and stops."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.containers.podman import environment, podman
from tests.containers.test_cpu_image import CHAT, START, free_port, until
from tests.paths import ROOT

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("podman_compose") is None, reason="podman-compose is not installed"),
]
PROJECT = "lightllm-mp-tests"


def compose(override: Path, *words: str, **settings: str) -> str:
    command = [sys.executable, "-m", "podman_compose", "--project-name", PROJECT, "--file", str(ROOT / "compose.yaml")]
    command += ["--file", str(override), *words]
    done = subprocess.run(
        command, env={**environment(), **settings}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_service_serves_a_model_of_the_folder(image: str, tmp_path: Path) -> None:
    from lightllm_mp.model_files.default_model import find_default_model

    port, model, override = free_port(), find_default_model(), tmp_path / "override.yaml"
    override.write_text(  # the host's network: a bridge would change the machine's firewall
        json.dumps(
            {"services": {"cpu": {"image": image, "network_mode": "host", "environment": {"LIGHTLLM_MP_PORT": port}}}}
        )
    )
    settings = {"MODELS": str(model.parent), "MODEL": model.name, "LIGHTLLM_MP_API_KEYS": "key"}
    try:
        compose(override, "up", "--detach", "--no-build", **settings)
        (name,) = podman("ps", "--format", "{{.Names}}").stdout.split()
        until(lambda: podman("healthcheck", "run", name, check=False).returncode == 0, START, "not healthy")
        (found,) = json.loads(podman("inspect", name).stdout)
        assert found["HostConfig"]["ReadonlyRootfs"] is True
        assert found["EffectiveCaps"] in ([], None)
        for key, status in (("key", 200), ("other", 401)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"Authorization": f"Bearer {key}"})
            assert connection.getresponse().status == status
            connection.close()
        assert f"/models/{model.name}" in podman("exec", name, "env").stdout
    finally:
        compose(override, "down", "--volumes", **settings)
    assert podman("ps", "--all", "--quiet").stdout == ""
