"""What this machine would serve a model on, and how much memory it has for it."""

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
        """What `--data-type auto` becomes (kernels/select.py)."""
        if spec.file_dtype == "float32":
            return "float32"
        if self.is_gpu:
            return "float16" if spec.file_dtype == "float16" else "bfloat16"
        return "bfloat16" if native() is not None else "float32"

    def kv_room(self, weights: int, mem_fraction: float) -> int:
        """Bytes for KV beside so many bytes of weights. On a GPU steps need some of it too."""
        if self.is_gpu:
            return max(0, int(self.free * mem_fraction) - weights)
        return max(0, int((self.free - weights) * mem_fraction * CPU_KV_SHARE))


def this_machine() -> Machine:
    """The first GPU that nvidia-smi knows, else the CPU."""
    if found := _gpu():
        return found
    return Machine("CPU", free_memory(), is_gpu=False)


def _gpu() -> Machine | None:
    gpus = see_gpus()
    if isinstance(gpus, str) or not gpus:
        return None
    return Machine(gpus[0].name, gpus[0].free << 20, is_gpu=True)


class GpuLine(Struct, frozen=True):
    """A line of nvidia-smi; sizes in MiB."""

    name: str
    driver: str
    total: int
    free: int


def see_gpus() -> list[GpuLine] | str:
    """GPUs, or why nvidia-smi could not say."""
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
        return "an answer that is not understood"
