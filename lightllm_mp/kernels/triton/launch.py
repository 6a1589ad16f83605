"""Launches compiled kernels with less work on the host than Triton's own look-up: it outlasts small kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ALIGNED = 16
"""Bytes; what Triton makes of a kernel depends on whether every pointer is a multiple of this."""
EARLY_START = True
"""Whether kernels that can do so start early where the GPU can; `--early` and `--no-early` of tools.bench.steps
and tools.bench.linear compare."""


class Kernel:
    """A jitted function whose parameters are tensors, then numbers it is not specialised on, then constants.

    `waits`: it can be started before the kernel in front of it has ended ("programmatic dependent launch" in CUDA's
    guide), which hides the start of small kernels. Its last constant says whether it is: `wait_for_inputs` takes it.
    """

    def __init__(self, function: Any, *, waits: bool = False) -> None:
        self._function, self._waits = function, waits
        self._compiled: dict[tuple, Any] = {}

    def launch(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor, ...],
        numbers: tuple[float, ...],
        constants: tuple[Any, ...],
        *,
        warps: int = 4,
        stages: int = 3,
    ) -> None:
        """Runs the kernel on the current stream of the current device, compiling it first where it is new."""
        device = tensors[0].device
        early = self._waits and EARLY_START and _can_wait(device)
        if self._waits:
            constants = (*constants, early)
        addresses, together = [tensor.data_ptr() for tensor in tensors], 0
        for address in addresses:
            together |= address
        key = (constants, warps, stages, device, *[tensor.dtype for tensor in tensors])
        compiled = None if together % ALIGNED else self._compiled.get(key)
        if compiled is not None:
            # Past Triton's front: it would ask the driver about each pointer, and look for hooks.
            run, function, metadata = compiled
            stream = _stream_of()(device.index)
            run(*grid, stream, function, metadata, None, None, None, *addresses, *numbers, *constants)
            return
        options = {"num_warps": warps, "num_stages": stages, **({"launch_pdl": True} if early else {})}
        made = self._function[grid](*tensors, *numbers, *constants, **options)
        if together % ALIGNED == 0 and made is not None:
            self._compiled[key] = made.run, made.function, made.packed_metadata


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """In a kernel that was started early: waits until all kernels in front have ended and what they wrote can be seen.

    Before it a kernel may read only what no kernel of the same step writes, such as weights, and write nothing. The
    next kernel starts once all programs of this one are here, so that at most two run at a time.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def _stream_of() -> Callable[[int], int]:
    """What gives a device's current stream, for as little as it can cost."""
    return triton.runtime.driver.active.get_current_stream


@cache
def _can_wait(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
