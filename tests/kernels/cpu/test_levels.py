"""Levels of instructions: the choice of one, and the compiled code of the AVX2 kernels."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightllm_mp.errors import ConfigError
from lightllm_mp.kernels.cpu import runtime
from tests.kernels.cpu.assembly import functions_of, innermost_loops
from tests.kernels.cpu.native_checks import extension

SOURCES = Path(runtime.__file__).parent / "level"
pytestmark = pytest.mark.skipif(runtime.native() is None, reason="the C extension is not built")


def test_the_best_level_is_used():
    assert runtime.level() == runtime.levels()[-1]
    assert runtime.levels()[0] in ("baseline", "neon")


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match=r"choose one of (baseline|neon)"):
        runtime.use_level("avx9000")


def run(code: str, level: str) -> str:
    environment = {runtime.VARIABLE: level, "PYTHONPATH": ":".join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, timeout=60, env=environment, capture_output=True, text=True).stdout


def test_the_environment_names_a_level():
    code = """
import torch
from lightllm_mp.kernels import select
from lightllm_mp.kernels.cpu import runtime
try:
    select.op_table("cpu", torch.float32)
except Exception as error:
    print(type(error).__name__, error)
else:
    print(runtime.level())
"""
    lowest = runtime.levels()[0]
    assert run(code, lowest).strip() == lowest
    assert run(code, "z80").startswith("ConfigError LIGHTLLM_MP_CPU=z80: not a level of this processor")


LOOPS = (
    *("chunk_Q4_0", "chunk_Q4_1", "chunk_Q8_0", "chunk_Q4_K", "chunk_Q6_K", "chunk_MXFP4"),
    *("float_panel", "bf16_panel", "attend"),
)
"""Functions of a level in which a model spends its time."""


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Functions of the AVX2 level, compiled on this machine with the package's flags."""
    compiler = shutil.which("gcc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("gcc for x86-64 is needed")
    flags = [*extension()["extra-compile-args"], "-fPIC"]
    return functions_of(SOURCES / "avx2.c", compiler, flags, tmp_path_factory.mktemp("assembly") / "avx2.s")


def test_avx2_functions_use_whole_registers(assembly):
    """A vector type wider than the registers, or one that is lowered before the target is known, shows as products in
    halves of registers."""
    for name in LOOPS:
        products = re.findall(r"\bv?(?:pmaddwd|fmadd\d+ps|mulps)\s[^\n]*", assembly[name])
        narrow = [line for line in products if "%xmm" in line]
        assert len(products) > 4, name
        assert not narrow, (name, narrow[:3])


def products_and_spills(function: str) -> list[tuple[int, int]]:
    """For each inner loop that multiplies: its products, and the vectors that it reads back from the stack."""
    counts = []
    for loop in innermost_loops(function):
        products = sum("madd" in line for line in loop)
        if products > 8:
            counts.append((products, sum(bool(re.search(r"\(%r[sb]p\), .*%ymm\d+$", line)) for line in loop)))
    return counts


@pytest.mark.parametrize("name", ["float_panel", "bf16_panel"])
def test_avx2_float_loops_spill_nothing(assembly, name):
    assert {spills for _, spills in products_and_spills(assembly[name])} == {0}


@pytest.mark.parametrize("name", ["chunk_Q4_1", "chunk_Q8_0", "chunk_Q6_K"])
def test_avx2_integer_loops_keep_their_sums_in_registers(assembly, name):
    """A loop that the compiler unrolls too far reads back more than half of its products."""
    counts = products_and_spills(assembly[name])
    assert counts
    assert all(spills < products / 3 for products, spills in counts)
