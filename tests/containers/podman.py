"""A container engine for tests: Debian's podman, with a storage of its own in this clone.

No image comes from elsewhere: mmdebstrap makes the root of the Dockerfiles' base from Debian's packages, podman builds
the Dockerfile on it (with chroot isolation, so that steps run on a machine that lets no container start), and runc runs
the result. What is installed comes from where this machine's pip and apt find it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

STORE = ROOT / ".cache" / "containers"
RUN = Path("/run") / f"lightllm-mp-tests-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
"""State of running containers, which a restart of the machine must end."""
IMAGE = "localhost/lightllm-mp-tests"
PROGRAMS = ("podman", "runc", "mmdebstrap")
DOCKERFILE = ROOT / "docker" / "cpu.Dockerfile"
PACKAGED = ("docker/cpu.Dockerfile", "docker/requirements.py", "docker/resolve_ptx_version", ".dockerignore")
PACKAGED += ("lightllm_mp", "compat", "pyproject.toml", "setup.cfg")
"""What the image depends on, in this repository."""
BUILD_SECONDS = 1500.0
"""Deadline of a build. It takes two minutes of one core; a machine may be busy."""
SLIM = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
"""What the -slim images of Debian leave out."""


def unavailable() -> str:
    """Why no image can be built and run here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid():
        return "not root"
    return ""


@functools.cache
def environment() -> dict[str, str]:
    """The environment in which `podman` uses the store and settings of these tests."""
    STORE.mkdir(parents=True, exist_ok=True)
    settings, storage = STORE / "containers.conf", STORE / "storage.conf"
    limits = ", ".join(f'"{name}={most}:{most}"' for name, most in _limits().items())
    # The host's network: a bridge would change the machine's firewall.
    settings.write_text(
        f'[containers]\nnetns = "host"\ndefault_ulimits = [{limits}]\n[engine]\nruntime = "runc"\n'
        f'cgroup_manager = "cgroupfs"\nevents_logger = "none"\ntmp_dir = "{RUN}/libpod"\nlock_type = "file"\n'
    )
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE}/storage"\nrunroot = "{RUN}/storage"\n')
    return {
        **os.environ,
        "CONTAINERS_CONF": str(settings),
        "CONTAINERS_STORAGE_CONF": str(storage),
        "DISABLE_HC_SYSTEMD": "true",  # health checks are run by hand
    }


def _limits() -> dict[str, int]:
    """podman raises limits beyond what this process may; it lowers the number of processes to the kernel's."""
    processes = int(Path("/proc/sys/kernel/pid_max").read_text())
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return {"nofile": files, "nproc": min(processes, resource.getrlimit(resource.RLIMIT_NPROC)[1] % (1 << 63))}


def podman(*words: str, timeout: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs podman. AssertionError, with what it said, if `check` and it fails."""
    done = subprocess.run(
        ["podman", *words], env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or done.returncode == 0, f"podman {' '.join(words)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done


def image() -> str:
    """The name of the CPU image of this tree, built if it does not exist."""
    environment()
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session of tests may build it now
        return _image(f"{IMAGE}:{_fingerprint()}")


def _image(name: str) -> str:
    if podman("image", "exists", name, check=False).returncode:
        for left in podman("ps", "--all", "--external", "--quiet").stdout.split():  # by a build that was killed
            podman("rm", "--force", left, timeout=300)
        for old in podman("images", "--quiet", IMAGE).stdout.split():
            podman("rmi", "--force", old, timeout=300)
        _build(name, _base())
    return name


def _fingerprint() -> str:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGED]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
    digest = hashlib.sha256()
    for name in sorted(filter(None, names)):
        file = ROOT / name
        digest.update(name.encode() + b"\0" + (file.read_bytes() if file.is_file() else b"") + b"\0")
    return digest.hexdigest()[:16]


def suite() -> str:
    """Debian's release in the Dockerfile's base image."""
    found = re.search(r"^ARG BASE=debian:([a-z]+)-slim$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def _base() -> str:
    """An image with the packages of debian:SUITE-slim."""
    name = f"{IMAGE}-base:{suite()}"
    if podman("image", "exists", name, check=False).returncode:
        tar = STORE / "base.tar"
        options = [f"--dpkgopt=path-exclude={path}" for path in SLIM]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", *options, suite(), str(tar)]
        subprocess.run(command, timeout=300, check=True)
        podman("import", "--quiet", str(tar), name, timeout=120)
        tar.unlink()
    return name


def _build(name: str, base: str) -> None:
    words = ["build", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker"]
    words += ["--layers=false", "--build-arg", f"BASE={base}", "--build-arg", "TORCH_INDEX=default"]
    words += [word for volume in _pip_volumes() for word in ("--volume", f"{volume}:ro")]
    podman(*words, "--file", str(DOCKERFILE), "--tag", name, str(ROOT), timeout=BUILD_SECONDS)


def _pip_volumes() -> list[str]:
    """What lets pip in the build find what this machine's pip finds: its settings, and the files and folders that they
    name."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    settings, volumes = {}, []
    for name, value in (line.split("=", 1) for line in lines):
        words = value.strip("'\"").split()
        for number, word in enumerate(words):
            path = Path(word.removeprefix("file://"))
            if path.is_file():
                words[number] = f"/etc/pip-files/{path.name}"
                volumes.append(f"{path}:{words[number]}")
            elif path.is_absolute() and path.is_dir():
                folder = path.parent if word.startswith("file://") else path  # an index refers to files beside it
                volumes.append(f"{folder}:{folder}")
        settings[name.rpartition(".")[2]] = " ".join(words)
    file = STORE / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return [f"{file}:/etc/pip.conf", *dict.fromkeys(volumes)]
