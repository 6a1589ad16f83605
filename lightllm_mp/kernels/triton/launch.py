"""Launches compiled kernels with less host work than Triton's own look-up, which takes longer than small kernels do."""

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
"""Whether kernels that can do so start early where the GPU can; `--early` and `--no-early` of scripts/bench_gpu.py,
bench_linear.py and profile_step.py compare."""

_dtype_of = attrgetter("dtype")


def kernel(
    *, numbers: Sequence[str] = (), specialised: Sequence[str] = (), waits: bool = False
) -> Callable[[Callable[..., None]], Kernel]:
    """Decorates a kernel's function. `numbers` names the parameters that are numbers, `specialised` those of them for
    which Triton compiles multiples of 16 apart: callers see to it that they always are, or say so in a constant."""
    plain = [name for name in numbers if name not in specialised]
    return lambda function: Kernel(triton.jit(function, do_not_specialize=plain), numbers, waits=waits)


class Kernel:
    """A jitted function whose parameters are tensors, then numbers, then constants: launched by
    `kernel.launch(grid, kernel.arguments(...))`.

    `waits`: it can be started before the kernel in front of it has ended ("programmatic dependent launch" in CUDA's
    guide), which hides the start of small kernels. Its last constant, EARLY, says whether it is: `launch` adds it, and
    `wait_for_inputs` takes it.
    """

    arguments: Callable[..., tuple]
    """Takes every parameter but EARLY by its name; gives them in the kernel's order. TypeError for a name that is
    missing or unknown."""

    def __init__(self, function: Any, numbers: Sequence[str] = (), *, waits: bool = False) -> None:
        """TypeError where the parameters are in another order, or there is no tensor."""
        self._function, self._waits = function, waits
        name, parameters = function.fn.__name__, inspect.signature(function.fn).parameters
        constants = [name for name, parameter in parameters.items() if "constexpr" in str(parameter.annotation)]
        tensors = [name for name in parameters if name not in constants and name not in numbers]
        if not tensors or [*tensors, *numbers, *constants] != list(parameters):
            raise TypeError(f"{name}: the parameters must be tensors, then {list(numbers)}, then constants")
        if waits != ("EARLY" in constants[-1:]) or "EARLY" in constants[:-1]:
            raise TypeError(f"{name}: a kernel that waits, and no other, has a last constant EARLY")
        self.names = tuple(parameters)[: len(parameters) - waits]
        # The quickest way to put named arguments in order: a named tuple's constructor that makes a plain tuple.
        self.arguments = MethodType(namedtuple(name.strip("_"), self.names).__new__, tuple)
        self._tensors, self._first_constant = len(tensors), len(tensors) + len(numbers)
        self._compiled: dict[tuple, tuple] = {}

    def launch(self, grid: tuple[int, int, int], arguments: tuple, *, warps: int = 4, stages: int = 3) -> None:
        """Runs the kernel on the current stream of the current device, compiling it first where it is new."""
        tensors = arguments[: self._tensors]
        addresses = [*map(Tensor.data_ptr, tensors)]
        device = tensors[0].device
        constants = arguments[self._first_constant :]
        key = (constants, warps, stages, EARLY_START, device, *map(_dtype_of, tensors))
        aligned = reduce(or_, addresses) % ALIGNED == 0
        compiled = self._compiled.get(key) if aligned else None
        if compiled is not None:
            # Past Triton's front: it would ask the driver about each pointer, and look for hooks.
            run, function, metadata, stream_of, early = compiled
            stream, others = stream_of(device.index), arguments[self._tensors :]
            run(*grid, stream, function, metadata, None, None, None, *addresses, *others, *early)
            return
        early = (EARLY_START and _can_wait(device),) if self._waits else ()
        options = {"num_warps": warps, "num_stages": stages, **({"launch_pdl": True} if any(early) else {})}
        made = self._function[grid](*arguments, *early, **options)
        if aligned and made is not None:
            stream_of = triton.runtime.driver.active.get_current_stream
            self._compiled[key] = made.run, made.function, made.packed_metadata, stream_of, early


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
def _can_wait(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
