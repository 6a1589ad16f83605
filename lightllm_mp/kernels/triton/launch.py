"""Launches compiled kernels with less work on the host than Triton's own look-up: it outlasts small kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

ALIGNED = 16
"""Bytes; what Triton makes of a kernel depends on whether every pointer is a multiple of this."""


class Kernel:
    """A jitted function whose parameters are tensors, then numbers it is not specialised on, then constants."""

    def __init__(self, function: Any) -> None:
        self._function = function
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
        early: bool = False,
    ) -> None:
        """Runs the kernel on the current stream of the current device, compiling it first where it is new.

        `early`: it may start before the kernel in front of it has ended, and waits for that itself (see
        "programmatic dependent launch" in CUDA's guide). Constants must tell the two ways apart.
        """
        addresses = 0
        for tensor in tensors:
            addresses |= tensor.data_ptr()
        key = (constants, warps, stages, tensors[0].device, *[tensor.dtype for tensor in tensors])
        compiled = None if addresses % ALIGNED else self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*tensors, *numbers, *constants)
            return
        options = {"num_warps": warps, "num_stages": stages, **({"launch_pdl": True} if early else {})}
        compiled = self._function[grid](*tensors, *numbers, *constants, **options)
        if addresses % ALIGNED == 0 and compiled is not None:
            self._compiled[key] = compiled
