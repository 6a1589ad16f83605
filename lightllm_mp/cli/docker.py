"""`lightllm-mp docker`: prints, or runs, the command that serves a model in a container.

It takes the flags of LightLLM's `tools/quick_launch_docker.py`. Unlike there, the container has a read-only root, no
capabilities and time to drain, and only this machine reaches its port unless `--host` says otherwise.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.errors import ConfigError

ENGINES = ("docker", "podman")
CPU_IMAGE, CUDA_IMAGE = "lightllm-mp:cpu", "lightllm-mp:cuda"
MODELS = PurePosixPath("/models")
"""The folder of models in the container."""
TEMPORARY = "/tmp:noexec,nosuid,nodev,size=1g"
"""The only folder of the CPU image that a server writes to."""
STOP_SECONDS = 60
"""Seconds from SIGTERM to SIGKILL: the server drains for --drain-timeout (30 s), then ends its processes."""
SHARED_MEMORY = "1g"
"""The size of /dev/shm, for NCCL with several ranks. The server's own segments are anonymous and not in /dev/shm."""
KEYS = ("LIGHTLLM_MP_API_KEYS", "LIGHTLLM_MP_ADMIN_KEYS")
"""Variables that the container inherits if they are set. The command has their names without values."""
GPU_DEVICE = Path("/dev/nvidiactl")
LOOPBACK = "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """Print the command, or with --run execute it in place of this process. ConfigError for wrong flags or if no
    container engine is found."""
    own, server = split(argv)
    space = parse(parser(), own)
    engine = space.engine or next(filter(shutil.which, ENGINES), None)
    words = command(space, engine or ENGINES[0], server, os.environ)
    if space.run:
        _become(words, engine)
    print(shlex.join(words))
    return 0


def _become(words: list[str], engine: str | None) -> None:
    if engine is None or shutil.which(engine) is None:
        missing = f"{engine} is not" if engine else "neither docker nor podman is"
        raise ConfigError(f"--run: {missing} in PATH; install one, or leave --run out to get the command")
    print(shlex.join(words), file=sys.stderr, flush=True)
    os.execvp(words[0], words)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of this command, and those after `--`, which are the server's."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def parser() -> Parser:
    found = Parser(
        "lightllm-mp docker",
        description="print the command that serves a model in a container; flags behind -- go to the server",
        epilog="Build the image first: docker build -f docker/cpu.Dockerfile (or cuda.Dockerfile); they say how.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add(
        "-m",
        "--model",
        "-mp",
        "--model-path",
        "--model-dir",
        metavar="PATH",
        help="model folder or GGUF file (default: the image's)",
    )
    add("-p", "--port", type=int, default=8080, help="port (%(default)s)")
    add("--host", default=LOOPBACK, help="address of this machine to open the port on (%(default)s)")
    add("-n", "--num-proc", "-t", "--tp", type=int, default=1, help="ranks, each with its own GPU (%(default)s)")
    add("-mt", "--max-total-tokens", type=int, help="size of the KV pool in tokens (default: what fits)")
    add("--image", help=f"image (default: {CPU_IMAGE} or {CUDA_IMAGE})")
    device = found.add_mutually_exclusive_group()
    device.add_argument("--cpu", action="store_true", help="no GPU (default where this machine has none)")
    device.add_argument("--gpus", metavar="all|N|I,J", help="GPUs: all, a number of them, or their indices (0,1)")
    add("--name", help="name of the container")
    add("-K", "--keep-container", action="store_true", help="keep the container when it has ended")
    add("--shm-size", help=f"size of /dev/shm, which NCCL uses (default: {SHARED_MEMORY} with several ranks)")
    add("--engine", choices=ENGINES, help="program to run containers with (default: the first that is found)")
    add("--run", action="store_true", help="run the command instead of printing it")
    return found


def command(space: argparse.Namespace, engine: str, server: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The words of the command. ConfigError for a missing model or a wrong number."""
    if not 1 <= space.port <= 65535:
        raise ConfigError(f"--port {space.port}: expected 1 to 65535", param="port")
    gpus = None if space.cpu else space.gpus or ("all" if GPU_DEVICE.exists() else None)
    mount = Mount.of(space.model) if space.model else None
    shared = space.shm_size or (SHARED_MEMORY if space.num_proc > 1 else None)
    keys = [name for name in KEYS if environ.get(name)]
    words = [engine, "run", "--read-only", "--tmpfs", TEMPORARY, "--cap-drop", "ALL"]
    words += ["--security-opt", "no-new-privileges", "--stop-timeout", str(STOP_SECONDS)]
    words += [] if space.keep_container else ["--rm"]
    words += ["--interactive", "--tty"] if space.run and sys.stdin.isatty() else []
    words += ["--name", space.name] if space.name else []
    words += ["--publish", f"{_bracketed(space.host)}:{space.port}:{space.port}"]
    words += ["--shm-size", shared] if shared else []
    words += gpu_words(engine, gpus) if gpus else []
    words += ["--volume", "lightllm-mp-cache:/cache"] if gpus else []  # keeps compiled kernels beyond the container
    words += mount.words() if mount else []
    for name in keys:
        words += ["--env", name]
    if not keys and space.host in (LOOPBACK, "localhost", "::1"):
        words += ["--env", "LIGHTLLM_MP_ALLOWED_HOST=localhost"]  # refuses web pages of other hosts
    words += [space.image or (CUDA_IMAGE if gpus else CPU_IMAGE), "lightllm-mp", "serve", "--port", str(space.port)]
    words += ["--model-dir", str(mount.model)] if mount else []
    words += ["--tp", str(space.num_proc)] if space.num_proc > 1 else []
    words += ["--max-total-token-num", str(space.max_total_tokens)] if space.max_total_tokens else []
    return [*words, *server]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def gpu_words(engine: str, gpus: str) -> list[str]:
    """The flags that give GPUs to the container: Docker has --gpus, podman names devices of the Container Device
    Interface. ConfigError unless `gpus` is `all`, a number, or indices separated by commas."""
    indices = gpus.split(",")
    if gpus != "all" and not all(index.isdecimal() for index in indices):
        raise ConfigError(f"--gpus {gpus}: expected all, a number of GPUs, or indices like 0,1", param="gpus")
    if engine == "docker":
        return ["--gpus", f'"device={gpus}"' if len(indices) > 1 else gpus]
    if len(indices) == 1 and gpus != "all":
        indices = [str(index) for index in range(int(gpus))]
    return [word for index in indices for word in ("--device", f"nvidia.com/gpu={index}")]


class Mount(NamedTuple):
    """A model on this machine and in the container."""

    source: Path
    target: PurePosixPath
    model: PurePosixPath
    """The path of the model in the container: `target` or below it."""

    @staticmethod
    def of(model: str) -> Mount:
        """The mount for `model`, a folder or file: the lowest folder that also holds the targets of its links. Hugging
        Face's cache links each file of a snapshot to a folder beside it. ConfigError for a missing model."""
        path = Path(os.path.abspath(os.path.expanduser(model)))
        if not path.exists():
            raise ConfigError(f"--model {model}: no such folder or file", param="model")
        path = path.parent.resolve() / path.name if path.is_symlink() and path.is_file() else path.resolve()
        files = [path, *(path.iterdir() if path.is_dir() else ())]
        source = Path(os.path.commonpath([path, *(file.resolve() for file in files)]))
        if source == Path("/"):
            raise ConfigError(f"--model {model}: its links lead too far away to be mounted; copy it", param="model")
        if "," in str(source):
            raise ConfigError(f"--model {model}: no comma may stand in the path of a mount", param="model")
        target = MODELS / source.name
        return Mount(source, target, target / path.relative_to(source))

    def words(self) -> list[str]:
        return ["--mount", f"type=bind,source={self.source},target={self.target},readonly"]
