"""Checks of the software: Python, torch and triton, the compiled extensions, NVIDIA's driver."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from lightllm_mp.actors.runtime.launch_spec import child_environment
from lightllm_mp.cli.doctor.finding import Findings, fail, ok, warn
from lightllm_mp.cli.inspect.machine import see_gpus
from lightllm_mp.errors import ConfigError
from lightllm_mp.kernels.cpu import runtime
from lightllm_mp.sandbox import LAYERS, SECCOMP, Layer, landlock_version, missing_layers
from lightllm_mp.shm.implementation import extension

DEADLINE = 60.0
"""Seconds for the import of torch, which reads gigabytes from a cold disk."""
OLDEST_PYTHON = (3, 11)
LOOK = """
import importlib.metadata, json
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
seen = {name: version(name) for name in ("torch", "triton", "transformers")}
try:
    import torch
    seen["cuda"] = torch.version.cuda or ""
    seen["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
except Exception as error:
    seen["error"] = f"{type(error).__name__}: {error}"[:300]
print("\\n" + json.dumps(seen))
"""


class TorchReport(Struct, frozen=True):
    """Versions and GPUs that a child process sees. "": not installed."""

    torch: str = ""
    triton: str = ""
    transformers: str = ""
    cuda: str = ""
    gpus: int = 0
    error: str = ""


def python() -> Findings:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        yield fail("python", version, "install Python 3.11 or newer")
    else:
        yield ok("python", f"{version}, {platform.system()} {platform.release()} {platform.machine()}")
    if platform.system() != "Linux":
        yield fail("system", platform.system(), "run the server on Linux: it needs memfd and pidfd")


def torch_and_gpus(deadline: float = DEADLINE) -> Findings:
    """Compares what torch and nvidia-smi see: the difference explains why a GPU is not used."""
    seen, gpus = see_torch(deadline), see_gpus()
    yield from _torch(seen)
    if isinstance(gpus, str):
        advice = "repair or remove the NVIDIA driver; until then the model runs on the CPU"
        yield warn("driver", f"nvidia-smi fails: {gpus}", advice)
        return
    if not gpus:
        yield ok("gpu", "none; the model runs on the CPU")
        return
    for index, gpu in enumerate(gpus):
        text = f"{index}: {gpu.name}, driver {gpu.driver}, {gpu.free:,} of {gpu.total:,} MiB free"
        if gpu.free < gpu.total // 2:
            yield warn("gpu", text, "end other programs on it (nvidia-smi lists them), or lower --mem-fraction")
        else:
            yield ok("gpu", text)
    if not seen.error and seen.gpus < len(gpus):
        what = f"torch is built for CUDA {seen.cuda}" if seen.cuda else "torch is a build without CUDA"
        advice = "install the torch build for this driver, or check CUDA_VISIBLE_DEVICES and the container's runtime"
        yield warn("gpu", f"torch sees {seen.gpus} of {len(gpus)} GPUs: {what}", advice)
    if seen.gpus and not seen.triton:
        yield fail("triton", "missing", "pip install triton: the GPU kernels need it")


def _torch(seen: TorchReport) -> Findings:
    if not seen.torch:
        yield fail("torch", "missing", "pip install torch")
    elif seen.error:
        yield fail("torch", f"{seen.torch} cannot be imported: {seen.error}", "reinstall torch in this environment")
    else:
        yield ok("torch", f"{seen.torch}, {'CUDA ' + seen.cuda if seen.cuda else 'CPU only'}")
    if seen.triton:
        yield ok("triton", seen.triton)


def extensions() -> Findings:
    advice = "repeat pip install . with a C compiler (gcc or clang) on the PATH"
    if extension() is not None:
        yield ok("queues", "the C extension is built")
    else:
        yield warn("queues", "the C extension is not built; the slower Python twin is used", advice)
    if runtime.native() is None:
        yield warn("cpu kernels", "not built; on a CPU the model runs many times slower", advice)
        return
    try:
        runtime.obey_environment()
    except ConfigError as error:
        yield fail("cpu kernels", error.message, f"unset {runtime.VARIABLE}, or set it to one of these levels")
    else:
        yield ok("cpu kernels", f"{runtime.level()}, of {', '.join(runtime.levels())}")


def image_decoder(look: Callable[[Mapping[str, str]], tuple[Layer, ...]] = missing_layers) -> Findings:
    """Confines a child process in the same way as the process that decodes image files."""
    name = "decoder"
    try:
        missing = look(child_environment())
    except (OSError, subprocess.SubprocessError) as error:
        yield fail(name, f"it cannot be confined: {error}", f"use a newer kernel, or try {SECCOMP}=0")
        return
    have = [f"Landlock {landlock_version()}" if layer == "Landlock" else layer for layer in LAYERS]
    if not missing:
        yield ok(name, f"confined by {' and '.join(have)}")
        return
    advice = {
        "seccomp": f"allow seccomp(2) in the container's profile, and unset {SECCOMP}",
        "Landlock": "add landlock to the kernel's lsm= list (Linux 5.13 or newer), and allow it in the container",
    }
    yield warn(name, f"confined without {' and '.join(missing)}", "; ".join(advice[layer] for layer in missing))


def see_torch(deadline: float, program: str = LOOK) -> TorchReport:
    """Imports torch in a child process, so a torch that hangs or crashes is a finding and does not end this command."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return TorchReport(torch="?", error=f"the import takes more than {deadline:.0f} s")
    if done.returncode:
        return TorchReport(torch="?", error=f"the process that imports it ended with code {done.returncode}")
    try:
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=TorchReport)
    except msgspec.MsgspecError:
        return TorchReport(torch="?", error="the process that imports it wrote an unexpected answer")
