"""The CPU kernels for aarch64, built by a cross compiler and run by QEMU, at every level of instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

from tests.kernels.cpu.assembly import functions_of, innermost_loops
from tests.kernels.cpu.native_checks import ROOT, build, extension, run

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
LEVELS = ROOT / "lightllm_mp" / "kernels" / "cpu" / "level"


def need_compiler(with_library: bool = False) -> str:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    command = [COMPILER, "-static", "-x", "c", "-", "-o", "/dev/null"]
    if with_library and subprocess.run(command, input=b"int main(void) {}", capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no C library to link with")
    return COMPILER


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is not installed")
    return str(build(tmp_path_factory.mktemp("aarch64"), need_compiler(with_library=True), "-static"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "levels", "checked"),
    [
        ("cortex-a72", ["neon"], ["neon"]),
        ("cortex-a76", ["neon", "dotprod"], ["dotprod"]),
        ("max", ["neon", "dotprod", "bf16"], ["bf16"]),
    ],
)
def test_every_level_agrees_with_plain_arithmetic(program, processor, levels, checked):
    assert run([EMULATOR, "-cpu", processor, program, *checked]) == (levels, checked)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory):
    compiler, to = need_compiler(), tmp_path_factory.mktemp("assembly")
    flags = [*extension()["extra-compile-args"], "-fPIC"]
    return cache(lambda level: functions_of(LEVELS / f"{level}.c", compiler, flags, to / f"{level}.s"))


def loops_with(function: str, instruction: str, least: int) -> list[list[str]]:
    """Innermost loops with at least this many instructions whose names match."""
    wanted = re.compile(rf"(?:{instruction})\s")
    return [loop for loop in innermost_loops(function) if sum(bool(wanted.match(line)) for line in loop) >= least]


def on_the_stack(lines: list[str]) -> list[str]:
    """Instructions that move whole vectors to the stack or from it."""
    return [line for line in lines if re.match(r"(?:ldr|ldp|str|stp)\s+q\d+.*\[(?:sp|x29)", line.strip())]


def check_loops(function: str, instruction: str, least: int) -> None:
    loops = loops_with(function, instruction, least)
    assert loops
    for loop in loops:
        assert not on_the_stack(loop), loop


@pytest.mark.parametrize(("name", "most"), [("float_panel", 24), ("bf16_panel", 24), ("attend", 16)])
def test_neon_loops_keep_their_sums_in_registers(assembly, name, most):
    function = assembly("neon")[name]
    check_loops(function, "fml[as]", 8)
    assert max(sum(line.startswith("fmla") for line in loop) for loop in loops_with(function, "fmla", 8)) >= most


@pytest.mark.parametrize(("level", "instruction"), [("neon", "smlal2?"), ("dotprod", "udot")])
def test_integer_loops_keep_their_sums_in_registers(assembly, level, instruction):
    functions = assembly(level)
    for name in ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "IQ4_XS", "MXFP4", "ROWS_INT8", "GROUPS_INT4"):
        check_loops(functions[f"chunk_{name}"], instruction, 16)
    for name in ("Q2_K", "Q6_K"):  # half a block has a scale: its products may have no loop
        assert len(re.findall(rf"^\t{instruction}\s", functions[f"chunk_{name}"], flags=re.M)) >= 32


def test_bfloat16_products(assembly):
    functions = assembly("bf16")
    check_loops(functions["bf16_panel"], "bfmmla", 16)
    check_loops(functions["dot_few"], "bfdot", 32)
