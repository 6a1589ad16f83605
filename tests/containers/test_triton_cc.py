"""docker/triton-cc: in the CUDA image Triton finds its one C module compiled, and needs no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDER = ROOT / "docker" / "triton-cc"
NVIDIA = Path(sysconfig.get_path("platlib")) / "triton" / "backends" / "nvidia"
pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc"),
    pytest.mark.skipif(not NVIDIA.is_dir(), reason="Triton is not installed"),
]
LOAD = """
from triton.backends.nvidia.driver import CudaUtils
print(*sorted(name for name in vars(CudaUtils()) if callable(getattr(CudaUtils(), name))))
"""


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton-cc")
    done = run(str(FOLDER / "build.sh"), sys.executable, str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH with what Debian's slim image has, as far as it is needed here: no compiler."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("sh", "cmp", "cp", "dirname"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


@pytest.fixture(scope="module")
def driver(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that has every function that the module asks for and does nothing."""
    folder = tmp_path_factory.mktemp("driver")
    symbols = set(re.findall(rb"\bcu[A-Z]\w+", (built / "driver.so").read_bytes()))
    (folder / "cuda.c").write_bytes(b"".join(b"int %s(void) { return 0; }\n" % name for name in symbols))
    library = str(folder / "libcuda.so.1")
    done = run("gcc", "-w", "-shared", "-fPIC", str(folder / "cuda.c"), "-Wl,-soname,libcuda.so.1", "-o", library)
    assert done.returncode == 0, done.stderr
    return folder


def test_triton_loads_its_driver_module_without_a_compiler(built, programs, driver, tmp_path) -> None:
    settings = {
        "PATH": str(programs),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_LIBCUDA_PATH": str(driver),
        "LD_LIBRARY_PATH": str(driver),
        "TRITON_INTERPRET": "0",
    }
    without = run(sys.executable, "-c", LOAD, **settings, CC="")
    assert without.returncode, without.stdout
    done = run(sys.executable, "-c", LOAD, **settings, CC=str(built / "cc"))
    assert done.returncode == 0, done.stderr
    assert {"launch", "load_binary", "get_device_properties"} <= set(done.stdout.split())
    assert list((tmp_path / "cache").rglob("cuda_utils*.so"))


def test_any_other_source_is_refused(built, programs, tmp_path) -> None:
    source, output = tmp_path / "main.c", tmp_path / "main.so"
    source.write_text("int main(void) { return 0; }\n")
    done = run(str(built / "cc"), str(source), "-O3", "-shared", "-o", str(output), PATH=str(programs))
    assert done.returncode == 1
    assert "this image has no C compiler; set CC to one" in done.stderr
    assert not output.exists()


def test_a_triton_that_compiles_for_each_kernel_is_refused(tmp_path) -> None:
    """Triton 3.6 does."""
    nvidia = tmp_path / "triton" / "backends" / "nvidia"
    nvidia.mkdir(parents=True)
    (nvidia / "driver.py").write_text("def make_launcher(constants, signature):\n    pass\n")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    python.chmod(0o755)
    done = run(str(FOLDER / "build.sh"), str(python), str(tmp_path / "to"))
    assert done.returncode == 1
    assert "older than 3.7" in done.stderr
