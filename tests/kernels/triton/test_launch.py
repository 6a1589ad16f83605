"""Launches by names: each argument reaches the kernel's parameter, and a wrong name is found without a GPU."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightllm_mp.kernels import triton as package
from lightllm_mp.kernels.triton import launch
from lightllm_mp.kernels.triton.launch import ALIGNED, Kernel, kernel
from tests.kernels.triton.triton_case import DEVICE, triton  # which chooses the interpreter

tl = triton.language
GRID = (3, 2, 1)
FOLDER = Path(package.__path__[0])


@kernel(numbers=["count", "factor"])
def _copy_kernel(source, target, count, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < count) * factor, mask=at < count)


def test_names_in_any_order() -> None:
    source, target = torch.arange(8.0, device=DEVICE), torch.zeros(8, device=DEVICE)
    arguments = _copy_kernel.arguments(BLOCK=4, factor=2.0, count=7, target=target, source=source)
    _copy_kernel.launch((2, 1, 1), arguments, warps=1)
    assert target.tolist() == [0, 2, 4, 6, 8, 10, 12, 0]
    with pytest.raises(TypeError, match=r"copy_kernel.*'factor'"):
        _copy_kernel.arguments(source=source, target=target, count=7, BLOCK=4)
    with pytest.raises(TypeError, match=r"copy_kernel.*'FACTOR'"):
        _copy_kernel.arguments(source=source, target=target, count=7, factor=2.0, FACTOR=1, BLOCK=4)


def _constants_first(source, BLOCK: tl.constexpr, count): ...
def _number_first(count, source, BLOCK: tl.constexpr): ...
def _early(source, count, BLOCK: tl.constexpr, EARLY: tl.constexpr): ...
def _early_first(source, count, EARLY: tl.constexpr, BLOCK: tl.constexpr): ...
def _nothing(): ...


@pytest.mark.parametrize(
    ("function", "waits"), [(_constants_first, False), (_number_first, False), (_early, False), (_early_first, True)]
)
def test_parameters_in_a_wrong_order(function, waits: bool) -> None:
    with pytest.raises(TypeError, match=function.__name__):
        kernel(numbers=["count"], waits=waits)(function)


def test_a_kernel_without_tensors() -> None:
    with pytest.raises(TypeError, match="_nothing"):
        kernel()(_nothing)


class Compiled:
    """Stands for a jitted function and its compiled kernel; both note their arguments."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.compilations, self.launches = [], []

    @staticmethod
    def fn(x, out, count, KIND: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr): ...

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.compilations.append((grid, arguments, options)) or self

    def run(self, *arguments) -> None:
        self.launches.append(arguments)


@pytest.mark.parametrize("early", [False, True])
def test_what_is_compiled_is_launched_again(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """Compiles once for each set of constants and types; unaligned addresses take Triton's path each time."""
    stream = SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda index: "stream"))
    monkeypatch.setattr(launch.triton.runtime, "driver", stream)
    monkeypatch.setattr(launch, "can_wait", lambda device: early)
    jitted = Compiled()
    made = Kernel(jitted, ["count"], waits=True)
    x, out = torch.zeros(32), torch.zeros(32, dtype=torch.int32)
    assert x.data_ptr() % ALIGNED == out.data_ptr() % ALIGNED == 0

    def launched(x: torch.Tensor, kind: int = 1) -> None:
        made.launch(GRID, made.arguments(out=out, x=x, BLOCK=8, KIND=kind, count=5), warps=2)

    for kind in (1, 1, 2, 1):
        launched(x, kind)
    options = {"num_warps": 2, "num_stages": 3, **({"launch_pdl": True} if early else {})}
    assert jitted.compilations == [(GRID, (x, out, 5, kind, 8, early), options) for kind in (1, 2)]
    addresses = x.data_ptr(), out.data_ptr()
    again = (*GRID, "stream", "function", "metadata", None, None, None, *addresses, 5, 1, 8, early)
    assert jitted.launches == [again, again]
    launched(x.half())
    launched(x[1:])
    launched(x[1:])
    assert len(jitted.compilations) == 5
    monkeypatch.setattr(launch, "EARLY_START", False)
    launched(x)
    assert jitted.compilations[-1][1][-1] is False


def named() -> list[tuple[str, ast.Call]]:
    """Every call of a kernel's `arguments` in the package, with its module."""
    found = []
    for file in sorted(FOLDER.rglob("*.py")):
        module = ".".join((package.__name__, *file.relative_to(FOLDER).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "arguments":
                found.append((module, node))
    return found


def test_every_launch_names_the_parameters_of_its_kernel() -> None:
    """Also for launches that no test on this machine reaches. Arguments stand in the kernel's order."""
    called = set()
    for module, call in named():
        assert isinstance(call.func, ast.Attribute)
        assert isinstance(call.func.value, ast.Name)
        function = getattr(importlib.import_module(module), call.func.value.id)
        assert not call.args
        assert [keyword.arg for keyword in call.keywords] == list(function.names), f"{module}:{call.lineno}"
        called.add(function)
    modules = {importlib.import_module(module) for module, _ in named()}
    kernels = {value for module in modules for value in vars(module).values() if isinstance(value, Kernel)}
    assert kernels == called
    assert len(kernels) > 20
