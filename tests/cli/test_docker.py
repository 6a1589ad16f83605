"""`lightllm-mp docker`: the command is complete, quoted, and mounts what the model needs and no more."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lightllm_mp.cli import docker, main
from lightllm_mp.errors import ConfigError
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(docker, "GPU_DEVICE", tmp_path / "nvidiactl")
    for name in docker.KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model's folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def words(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main.main(["docker", *argv]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return shlex.split(line)


def pairs(command: list[str]) -> set[tuple[str, str]]:
    return set(pairwise(command))


def test_the_container_has_no_rights_and_time_to_drain(capsys, model) -> None:
    command = words(capsys, "-m", str(model), "-p", "9000", "--engine", "docker")
    given = pairs(command)
    assert command[:2] == ["docker", "run"]
    assert {("--cap-drop", "ALL"), ("--security-opt", "no-new-privileges"), ("--stop-timeout", "60")} <= given
    assert {"--read-only", "--rm"} <= set(command)
    assert ("--tmpfs", "/tmp:noexec,nosuid,nodev,size=1g") in given
    assert ("--publish", "127.0.0.1:9000:9000") in given
    assert ("--env", "LIGHTLLM_MP_ALLOWED_HOST=localhost") in given
    assert ("--mount", f"type=bind,source={model},target=/models/{model.name},readonly") in given
    ours = command[command.index(docker.CPU_IMAGE) + 1 :]
    assert ours == ["lightllm-mp", "serve", "--port", "9000", "--model-dir", f"/models/{model.name}"]


def test_without_a_model_the_image_serves_its_own(capsys) -> None:
    command = words(capsys)
    assert command[-5:] == [docker.CPU_IMAGE, "lightllm-mp", "serve", "--port", "8080"]
    assert "--mount" not in command


def test_flags_of_lightllm_mean_the_same(capsys, model) -> None:
    command = words(
        capsys, "-m", str(model), "-p", "9000", "-n", "2", "-mt", "4096", "--name", "llm", "-K", "--image", "ours",
        "--shm-size", "2g", "--gpus", "all",
    )  # fmt: skip
    assert command == words(
        capsys, "-mp", str(model), "--port", "9000", "-t", "2", "--max_total_tokens", "4096", "--name", "llm",
        "--keep_container", "--image", "ours", "--shm_size", "2g", "--gpus", "all",
    )  # fmt: skip
    assert {("--name", "llm"), ("--shm-size", "2g"), ("--gpus", "all"), ("--tp", "2")} <= pairs(command)
    assert ("--max-total-token-num", "4096") in pairs(command)
    assert "ours" in command
    assert "--rm" not in command


def test_flags_behind_dashes_go_to_the_server(capsys) -> None:
    command = words(capsys, "--cpu", "--", "--max-live-requests", "5", "--name", "x y")
    assert command[-6:] == ["--port", "8080", "--max-live-requests", "5", "--name", "x y"]


@pytest.mark.parametrize(
    ("engine", "gpus", "wanted"),
    [
        ("docker", "all", ["--gpus", "all"]),
        ("docker", "2", ["--gpus", "2"]),
        ("docker", "0,1", ["--gpus", '"device=0,1"']),  # docker reads comma-separated values in quotes
        ("podman", "all", ["--device", "nvidia.com/gpu=all"]),
        ("podman", "2", ["--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=1"]),
        ("podman", "1,3", ["--device", "nvidia.com/gpu=1", "--device", "nvidia.com/gpu=3"]),
    ],
)
def test_each_engine_is_told_about_gpus_in_its_words(capsys, engine, gpus, wanted) -> None:
    command = words(capsys, "--engine", engine, "--gpus", gpus, "-t", "2")
    assert " ".join(wanted) in " ".join(command)
    assert docker.CUDA_IMAGE in command
    assert {("--shm-size", "1g"), ("--volume", "lightllm-mp-cache:/cache")} <= pairs(command)


def test_a_machine_with_a_gpu_uses_it_unless_told_otherwise(capsys) -> None:
    docker.GPU_DEVICE.touch()
    assert docker.CUDA_IMAGE in words(capsys)
    assert docker.CPU_IMAGE in words(capsys, "--cpu")


def test_keys_are_passed_by_name(capsys, monkeypatch) -> None:
    monkeypatch.setenv("LIGHTLLM_MP_API_KEYS", "secret")
    command = words(capsys, "--host", "0.0.0.0")
    assert ("--env", "LIGHTLLM_MP_API_KEYS") in pairs(command)
    assert not any("secret" in word or "ALLOWED" in word for word in command)
    assert ("--publish", "0.0.0.0:8080:8080") in pairs(command)


def test_what_links_lead_to_is_mounted_too(capsys, tmp_path) -> None:
    """As in Hugging Face's cache: snapshots/REVISION/FILE -> ../../blobs/HASH."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "hash").touch()
    for name in ("config.json", "model.gguf"):
        (snapshot / name).symlink_to("../../blobs/hash")
    mounted = f"type=bind,source={tmp_path}/models--a--b,target=/models/models--a--b,readonly"
    for given, inside in ((snapshot, "snapshots/1"), (snapshot / "model.gguf", "snapshots/1/model.gguf")):
        command = words(capsys, "-m", str(given))
        assert {("--mount", mounted), ("--model-dir", f"/models/models--a--b/{inside}")} <= pairs(command)


def test_one_file_is_mounted_alone(capsys, model) -> None:
    (model / "other").touch()
    file = model / "config.json"
    assert ("--mount", f"type=bind,source={file},target=/models/config.json,readonly") in pairs(
        words(capsys, "-m", str(file))
    )


def test_links_out_of_the_tree_mount_no_whole_machine(model) -> None:
    (model / "out").symlink_to("/bin/sh")
    with pytest.raises(ConfigError, match="links lead too far"):
        docker.Mount.of(str(model))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("-m", "/nowhere"), "--model /nowhere: no such folder or file"),
        (("-p", "0"), "--port 0: expected 1 to 65535"),
        (("--gpus", "some"), "--gpus some: expected all, a number of GPUs, or indices like 0,1"),
        (("--cpu", "--gpus", "all"), "not allowed with"),
        (("--imag", "x"), "did you mean --image?"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, argv, message) -> None:
    assert main.main(["docker", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def command_line(path: str, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "lightllm_mp", "docker", *argv],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_run_without_an_engine_says_what_is_missing(tmp_path) -> None:
    done = command_line(str(tmp_path), "--run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "neither docker nor podman is in PATH" in done.stderr
    assert "docker is not in PATH" in command_line(str(tmp_path), "--run", "--engine", "docker").stderr
    assert command_line(str(tmp_path)).stdout.startswith("docker run ")  # to be pasted elsewhere


def test_run_becomes_the_printed_command(tmp_path) -> None:
    engine = tmp_path / "podman"
    engine.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    engine.chmod(0o755)
    done = command_line(
        f"{tmp_path}:/usr/bin:/bin", "--run", "--engine", "podman", "--cpu", "--", "--model-owner", "a b"
    )
    assert done.returncode == 7
    assert done.stdout.splitlines() == shlex.split(done.stderr)[1:]
