"""Whether there is memory for a model's weights, asked before any of them is read."""

from __future__ import annotations

import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.machine import format_bytes, free_memory


def check_room(needed: int, device: torch.device | str, ranks: int = 1) -> None:
    """ModelError when a rank's weights of `needed` bytes cannot fit: on a CPU, where `ranks` share the memory, the
    kernel does not refuse what there is not, it kills. On CUDA `needed` is compared with what is free on `device`."""
    device = torch.device(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        needed, free = needed * ranks, free_memory()
    if needed > free:
        raise ModelError(
            f"no memory for the model: its weights take {format_bytes(needed)}, and {format_bytes(free)} is free; free "
            "memory, or choose a smaller --data-type or model"
        )
