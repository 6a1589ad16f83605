"""`lightllm-mp doctor`: each check finds what is wrong and says what to do; nothing heavy in this process."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from lightllm_mp.cli import main
from lightllm_mp.cli.doctor import machine, model, software
from lightllm_mp.cli.doctor.command import line
from lightllm_mp.cli.doctor.finding import Finding, fail, ok
from lightllm_mp.cli.doctor.software import TorchReport, see_torch
from lightllm_mp.cli.inspect.machine import GpuLine, parse_gpus
from lightllm_mp.errors import ConfigError, StartupError
from lightllm_mp.model_files import default_model
from lightllm_mp.sandbox import SECCOMP, Layer
from tests.paths import ROOT

GOLDEN = ROOT / "tests" / "goldens" / "llama"


def worst(findings) -> Finding:
    """The gravest; whatever is wrong comes with advice."""
    found = list(findings)
    assert all(bool(finding.advice) == (finding.status != "OK") for finding in found)
    return max(found, key=lambda finding: ("OK", "WARN", "FAIL").index(finding.status))


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightllm_mp", "doctor", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_machine_that_can_serve() -> None:
    done = command("--model-dir", str(GOLDEN), "--port", "0", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), done.stdout
    checks = {check["name"]: check["status"] for check in report["checks"]}
    assert {
        "python",
        "torch",
        "queues",
        "decoder",
        "memory",
        "shared memory",
        "files",
        "clock",
        "disk",
        "port",
    } <= set(checks)
    assert checks["model"] == checks["permissions"] == "OK"


def test_what_fails_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("--model-dir", "/nowhere", "--port", str(port))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"FAIL  port          127.0.0.1:{port}: Address already in use" in lines
    assert "FAIL  model         /nowhere: no such folder or file" in lines
    assert all(lines[i + 1].strip().startswith("-> ") for i, text in enumerate(lines) if text.startswith("FAIL"))
    assert done.stderr == ""


def test_no_torch_in_this_process() -> None:
    program = (
        "import sys; from lightllm_mp.cli.doctor import command, machine, model, software; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("argv", [["--port", "66000"], ["--port", "x"], ["--no-such"], ["folder"]])
def test_wrong_flags(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        main.COMMANDS["doctor"](argv)


def test_lines() -> None:
    assert line(ok("port", "free")) == "OK    port          free"
    assert line(fail("port", "taken", "choose")).splitlines()[1] == " " * 20 + "-> choose"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import time; time.sleep(60)", "takes more than"),
        ("import os; os.abort()", "ended with code -6"),
        ("print('hello')", "unexpected answer"),
    ],
)
def test_a_torch_that_hangs_or_crashes_is_a_finding(program: str, said: str) -> None:
    begin = time.monotonic()
    seen = see_torch(1.0 if "sleep" in program else 30.0, program)
    assert said in seen.error
    assert time.monotonic() - begin < 20


FULL = TorchReport(torch="2.11", triton="3.6", cuda="12.9", gpus=1)
H100 = GpuLine("NVIDIA H100", "570.1", 81559, 81000)


@pytest.mark.parametrize(
    ("seen", "gpus", "status", "said"),
    [
        (FULL, [H100], "OK", "H100"),
        (TorchReport(torch="2.11"), [], "OK", "none; the model runs on the CPU"),
        (TorchReport(), [], "FAIL", "missing"),
        (TorchReport(torch="2.11", error="ImportError: libc10.so"), [], "FAIL", "libc10"),
        (TorchReport(torch="2.11+cpu"), [H100], "WARN", "a build without CUDA"),
        (TorchReport(torch="2.11", triton="3", cuda="12.9"), [H100], "WARN", "torch sees 0 of 1 GPUs"),
        (TorchReport(torch="2.11", cuda="12.9", gpus=1), [H100], "FAIL", "missing"),
        (FULL, [GpuLine("A", "1", 1000, 100)], "WARN", "100 of 1,000 MiB free"),
        (FULL, "Driver/library version mismatch", "WARN", "mismatch"),
    ],
)
def test_torch_and_gpus_explain_each_other(
    monkeypatch: pytest.MonkeyPatch, seen: TorchReport, gpus: list[GpuLine] | str, status: str, said: str
) -> None:
    monkeypatch.setattr(software, "see_torch", lambda deadline: seen)
    monkeypatch.setattr(software, "see_gpus", lambda: gpus)
    found = list(software.torch_and_gpus())
    assert worst(found).status == status
    assert any(said in finding.text for finding in found if finding.status == status)


@pytest.mark.parametrize(
    ("missing", "status", "said", "advice"),
    [
        ((), "OK", "confined by seccomp and Landlock", ""),
        (("seccomp",), "WARN", "confined without seccomp", "allow seccomp(2) in the container's profile"),
        (("Landlock",), "WARN", "confined without Landlock", "lsm= list"),
        (("seccomp", "Landlock"), "WARN", "confined without seccomp and Landlock", "lsm= list"),
        (
            OSError("a confined process ends with code 1"),
            "FAIL",
            "cannot be confined: a confined",
            "LIGHTLLM_MP_SECCOMP",
        ),
    ],
)
def test_what_confines_the_image_decoder(missing: object, status: str, said: str, advice: str) -> None:
    def look(environment: object) -> tuple[Layer, ...]:
        if isinstance(missing, OSError):
            raise missing
        return cast("tuple[Layer, ...]", missing)

    (found,) = software.image_decoder(look)
    assert (found.status, found.name) == (status, "decoder")
    assert said in found.text
    assert advice in found.advice


def test_the_confinement_is_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECCOMP, "0")
    (found,) = software.image_decoder()
    assert found.status == "WARN"
    assert "seccomp" in found.text


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse_gpus("NVIDIA H100 80GB HBM3, 570.1, 81559, 81000\n") == [
        GpuLine("NVIDIA H100 80GB HBM3", "570.1", 81559, 81000)
    ]
    assert parse_gpus("Odd, name, 570.1, 1, 2\nB, 1, 3, 4\n") == [
        GpuLine("Odd, name", "570.1", 1, 2),
        GpuLine("B", "1", 3, 4),
    ]
    assert isinstance(parse_gpus("No devices were found"), str)
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' ; exit 9\n")
    smi.chmod(0o755)
    assert software.see_gpus() == "NVIDIA-SMI has failed"
    smi.write_text("#!/bin/sh\necho 'A, 1, 2, 1'\n")
    assert software.see_gpus() == [GpuLine("A", "1", 2, 1)]


@pytest.mark.parametrize(("free", "status"), [(100 << 20, "FAIL"), (1 << 30, "WARN"), (8 << 30, "OK")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    assert worst(machine.memory()).status == status


def test_shared_memory_that_cannot_be_had() -> None:
    def refuse(name: str, size: int):
        raise StartupError("no memory for a shared segment")

    assert worst(machine.shared_memory()).status == "OK"
    assert worst(machine.shared_memory(refuse)).status == "FAIL"


@pytest.mark.parametrize(("hard", "status"), [(100, "FAIL"), (1024, "WARN"), (65536, "OK"), (-1, "OK")])
def test_descriptors(monkeypatch: pytest.MonkeyPatch, hard: int, status: str) -> None:
    """Only the hard limit counts: `serve` raises the soft one."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, hard))
    assert worst(machine.limits()).status == status


def test_clock(tmp_path: Path) -> None:
    assert worst(machine.clock(0.0, tmp_path)).status == "WARN"
    assert worst(machine.clock(1.8e9, tmp_path)).status == "OK"
    (tmp_path / "current_clocksource").write_text("hpet\n")
    assert worst(machine.clock(1.8e9, tmp_path)).text.endswith("source hpet")


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(machine.disk()).status in ("OK", "WARN")
    monkeypatch.setattr(machine, "LEAST_DISK", 1 << 62)
    assert worst(machine.disk()).status == "WARN"
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere")
    assert worst(machine.disk()).status == "FAIL"


def closed(folder: Path) -> None:
    os.chmod(folder / "config.json", 0)


def open_to_all(folder: Path) -> None:
    os.chmod(folder / "model.safetensors", 0o666)


def truncated(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (lambda folder: None, "OK", "can be read"),
        (closed, "FAIL", "cannot read config.json"),
        (open_to_all, "WARN", "every user of this machine can change 1 of 3 entries"),
        (truncated, "FAIL", "not a whole safetensors file"),
        (without_config, "FAIL", "config.json"),
    ],
)
def test_model_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: Callable[[Path], None], status: str, said: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir(mode=0o755)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    spoil(folder)
    if os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr(os, "access", lambda path, how: bool(Path(path).stat().st_mode & 0o400))
    finding = worst(model.model(str(folder)))
    assert (finding.status, said in finding.text) == (status, True), finding


def test_a_default_model_that_is_not_here_yet_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "no_such_package_is_installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = worst(model.model(None))
    assert (found.status, list(tmp_path.iterdir())) == ("WARN", [])
    assert "lightllm-mp pull" in found.advice
