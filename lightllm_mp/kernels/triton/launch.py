"""Launches compiled kernels with less host work than Triton's own look-up, which takes longer than a small kernel."""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache, reduce
from operator import attrgetter, or_
from types import MethodType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ALIGNED = 16
"""Bytes; what Triton makes of a kernel depends on whether every pointer is a multiple of this."""
EARLY_START = True
"""Whether kernels that can do so start early where the GPU can; `--early` and `--no-early` of tools.bench.steps
and tools.bench.kernels.linear compare."""

_dtype_of = attrgetter("dtype")


def kernel(
    *, numbers: Sequence[str] = (), specialised: Sequence[str] = (), waits: bool = False
) -> Callable[[Callable[..., None]], Kernel]:
    """Decorates a kernel's function. `numbers` names the parameters that are numbers. For those in `specialised` Triton
    compiles one kernel for multiples of 16 and one for others: callers pass only one sort, or tell the sorts apart by
    a constant."""
    plain = [name for name in numbers if name not in specialised]
    return lambda function: Kernel(triton.jit(function, do_not_specialize=plain), numbers, waits=waits)


class Kernel:
    """A jitted function whose parameters are tensors, then numbers, then constants: launched by
    `kernel.launch(grid, kernel.arguments(...))`.

    `waits`: the kernel can start before the previous one has ended ("programmatic dependent launch" in CUDA's guide),
    which hides the start of small kernels. Its last constant, EARLY, says whether it does: `launch` adds it, and
    `wait_for_inputs` takes it.
    """

    arguments: Callable[..., tuple]
    """Takes every parameter except EARLY by name, and returns them in the kernel's order. TypeError for a missing or
    unknown name."""

    def __init__(self, function: Any, numbers: Sequence[str] = (), *, waits: bool = False) -> None:
        """TypeError if the parameters are in another order, or none is a tensor."""
        self._function, self._waits = function, waits
        name, parameters = function.fn.__name__, inspect.signature(function.fn).parameters
        constants = [name for name, parameter in parameters.items() if "constexpr" in str(parameter.annotation)]
        tensors = [name for name in parameters if name not in constants and name not in numbers]
        if not tensors or [*tensors, *numbers, *constants] != list(parameters):
            raise TypeError(f"{name}: the parameters must be tensors, then {list(numbers)}, then constants")
        if waits != ("EARLY" in constants[-1:]) or "EARLY" in constants[:-1]:
            raise TypeError(f"{name}: a kernel that waits, and no other, has a last constant EARLY")
        self.names = tuple(parameters)[: len(parameters) - waits]
        # The fastest way to order named arguments: a named tuple's constructor, told to make a plain tuple.
        self.arguments = MethodType(namedtuple(name.strip("_"), self.names).__new__, tuple)
        self._tensors, self._first_constant = len(tensors), len(tensors) + len(numbers)
        self._compiled: dict[tuple, tuple] = {}

    def launch(self, grid: tuple[int, int, int], arguments: tuple, *, warps: int = 4, stages: int = 3) -> None:
        """Runs the kernel on the current stream of the current device; compiles it first if it is new."""
        tensors = arguments[: self._tensors]
        addresses = [*map(Tensor.data_ptr, tensors)]
        device = tensors[0].device
        constants = arguments[self._first_constant :]
        key = (constants, warps, stages, EARLY_START, device, *map(_dtype_of, tensors))
        aligned = reduce(or_, addresses) % ALIGNED == 0
        compiled = self._compiled.get(key) if aligned else None
        if compiled is not None:
            # Skip Triton's own launcher: it asks the driver about each pointer, and looks for hooks.
            run, function, metadata, stream_of, early = compiled
            stream, others = stream_of(device.index), arguments[self._tensors :]
            run(*grid, stream, function, metadata, None, None, None, *addresses, *others, *early)
            return
        early = (EARLY_START and can_wait(device),) if self._waits else ()
        options = {"num_warps": warps, "num_stages": stages, **({"launch_pdl": True} if any(early) else {})}
        made = self._function[grid](*arguments, *early, **options)
        if aligned and made is not None:
            stream_of = triton.runtime.driver.active.get_current_stream
            self._compiled[key] = made.run, made.function, made.packed_metadata, stream_of, early


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """In a kernel that started early: waits until all previous kernels have ended and their writes are visible.

    Before this call a kernel may write nothing, and read only what no kernel writes that may still run: weights, and
    what was written before the previous kernel began. The next kernel starts when all programs of this one have
    reached this call, so at most two run at a time.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def can_wait(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
