"""Builds the C code of the ring with AddressSanitizer, UndefinedBehaviorSanitizer and coverage for libFuzzer."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHM = HERE.parents[1] / "lightllm_mp" / "shm"
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-fno-sanitize-recover=all"]


def missing(native: bool, ring: str) -> str:
    """What a target lacks on this machine; empty: nothing."""
    if (native or ring == "c") and shutil.which("clang") is None:
        return "clang with its runtimes (apt-get install clang)"
    if not native and find_spec("atheris") is None:
        return "atheris (pip install 'lightllm-mp[fuzz]')"
    return ""


def native(folder: Path) -> Path:
    """Builds ring.c, a program."""
    return _compile(folder / "ring", "-fsanitize=fuzzer,address,undefined", str(HERE / "ring.c"))


def extension(folder: Path) -> Path:
    """Builds _ring.c as an extension for a process that preloads `preload`."""
    include = "-I" + sysconfig.get_paths()["include"]
    sanitizers = "-fsanitize=address,undefined,fuzzer-no-link"
    return _compile(folder / "_ring.so", "-shared", "-fPIC", include, sanitizers, str(SHM / "_ring.c"))


def preload() -> Path:
    """The sanitizers' runtime with libFuzzer, a part of atheris."""
    spec = find_spec("atheris")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1] / "asan_with_fuzzer.so"


def _compile(output: Path, *arguments: str) -> Path:
    command = ["clang", *FLAGS, f"-I{SHM}", *arguments, "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise SystemExit(f"clang cannot build {output.name}:\n{result.stderr[-2000:]}")
    return output
