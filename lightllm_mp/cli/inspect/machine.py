"""The device that would serve a model on this machine, and its free memory, found without torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from msgspec import Struct

from lightllm_mp.config import CPU_KV_SHARE
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.machine import free_memory
from lightllm_mp.models.spec import ModelSpec


@dataclass(frozen=True)
class Machine:
    device: str
    free: int
    """Bytes."""
    is_gpu: bool

    def data_type(self, spec: ModelSpec) -> str:
        """The type that `--data-type auto` chooses; the rule is `default_dtype` in kernels/select.py."""
        if spec.file_dtype == "float32":
            return "float32"
        if self.is_gpu:
            return "float16" if spec.file_dtype == "float16" else "bfloat16"
        return "bfloat16" if native() is not None else "float32"

    @property
    def kind(self) -> str:
        """The device's type, in torch's words."""
        return "cuda" if self.is_gpu else "cpu"

    def kv_room(self, weights: int, mem_fraction: float) -> int:
        """Bytes for KV beside `weights` bytes of weights. On a GPU the steps need a part of them."""
        if self.is_gpu:
            return max(0, int(self.free * mem_fraction) - weights)
        return max(0, int((self.free - weights) * mem_fraction * CPU_KV_SHARE))


def this_machine() -> Machine:
    """The first GPU that nvidia-smi lists, else the CPU."""
    if found := _gpu():
        return found
    return Machine("CPU", free_memory(), is_gpu=False)


def _gpu() -> Machine | None:
    gpus = see_gpus()
    if isinstance(gpus, str) or not gpus:
        return None
    return Machine(gpus[0].name, gpus[0].free << 20, is_gpu=True)


class GpuLine(Struct, frozen=True):
    """One GPU in the output of nvidia-smi. Sizes are MiB."""

    name: str
    driver: str
    total: int
    free: int


def see_gpus() -> list[GpuLine] | str:
    """All GPUs that nvidia-smi lists, or a text that says why it fails. [] if it is not installed."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__
    if done.returncode:
        return (done.stdout or done.stderr).strip().splitlines()[-1] if done.stdout + done.stderr else "no reason given"
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[GpuLine] | str:
    try:
        rows = [[cell.strip() for cell in line.rsplit(",", 3)] for line in text.splitlines() if line.strip()]
        return [GpuLine(name, driver, int(total), int(free)) for name, driver, total, free in rows]
    except ValueError:
        return "unexpected output"
