"""What this machine would serve a model on, and how much memory it has for it."""

from __future__ import annotations

from dataclasses import dataclass

from lightllm_mp.cli.inspect.gpus import see_gpus
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
