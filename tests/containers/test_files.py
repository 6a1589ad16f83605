"""The Dockerfiles and compose.yaml as files: linted, alike where they should be, and true to the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightllm_mp
from lightllm_mp.cli.docker import TEMPORARY
from tests.paths import ROOT

FILES = {name: ROOT / "docker" / f"{name}.Dockerfile" for name in ("cpu", "cuda")}
COMMON = ("FROM", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD", "WORKDIR")
"""Instructions that both images give alike."""
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")


def instructions(file: Path) -> list[str]:
    """Without comments, each on one line."""
    lines = [line for line in file.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_linter_finds_nothing(name: str) -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, str(FILES[name])], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("word", COMMON)
def test_both_images_are_alike(word: str) -> None:
    cpu, cuda = ([line for line in instructions(file) if line.split()[0] == word] for file in FILES.values())
    assert cpu == cuda != []


@pytest.mark.parametrize("name", FILES)
def test_the_image_names_the_version_and_the_licence(name: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\S+)="([^"]*)"', FILES[name].read_text()))
    assert labels["version"] == lightllm_mp.__version__
    assert labels["licenses"] == "Apache-2.0"
    assert {"title", "description", "base.name"} <= labels.keys()


@pytest.mark.parametrize("name", FILES)
def test_no_host_is_written_down(name: str) -> None:
    assert not re.findall(r"https?://", FILES[name].read_text() + (ROOT / "compose.yaml").read_text())


def test_the_launchers_script_runs_its_arguments() -> None:
    script = ROOT / "docker" / "resolve_ptx_version"
    words = ["/bin/bash", str(script), sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "a b", ""]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "['a b', '']\n")


def test_compose_gives_both_services_no_rights_and_time_to_drain() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"cpu", "gpu"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["tmpfs"] == [TEMPORARY]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["stop_grace_period"] == "60s"
        assert service["healthcheck"]["test"] == ["CMD", "lightllm-mp", "health"]
        assert all(port.startswith("${ADDRESS:-127.0.0.1}:") for port in service["ports"])
    assert "profiles" not in services["cpu"]
    assert services["gpu"]["profiles"] == ["gpu"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "${GPUS:-1}", "capabilities": ["gpu"]}
