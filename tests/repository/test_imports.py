"""Every module can be imported first and alone, and only worker and visual code brings torch along."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.repository.package import modules
from tests.repository.test_layering import may_use_torch

ALONE = """
import importlib, json, os, sys
preload, names = json.load(sys.stdin)
for name in preload:
    importlib.import_module(name)
assert not any(name.startswith("lightllm_mp") for name in sys.modules)
for name in names:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        else:
            heavy = sorted({"torch", "transformers"} & set(sys.modules))
            if heavy and "torch" not in preload:
                print(f"{name}: brings {' and '.join(heavy)} along", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print("end")
"""
"""Forks a child from a clean interpreter for each module: as good as a fresh interpreter, and much cheaper."""

OTHERS = ["numpy", "msgspec", "aiohttp.web", "gguf", "jinja2", "PIL.Image"]


def imported_alone(preload: list[str], names: list[str]) -> list[str]:
    """What went wrong, a line each. Third-party modules named in `preload` are loaded once for all."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=json.dumps([preload, names]),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    *lines, end = done.stdout.splitlines()
    assert end == "end"
    return lines


def test_modules_without_torch() -> None:
    names = [name for name in modules() if not may_use_torch(name)]
    if not find_spec("ray"):
        names = [name for name in names if not name.startswith("lightllm_mp.ray")]
    assert imported_alone(OTHERS, names) == []


def test_modules_with_torch() -> None:
    pytest.importorskip("torch")
    names = [name for name in modules() if may_use_torch(name)]
    # Triton's kernels need a GPU machine's triton.
    names = [name for name in names if ".triton" not in name]
    assert imported_alone(["torch", *OTHERS], names) == []


def test_the_check_sees_mistakes() -> None:
    assert imported_alone([], ["lightllm_mp.no_such_module"])[0].startswith(
        "lightllm_mp.no_such_module: ModuleNotFound"
    )
    assert imported_alone([], ["torch"]) == ["torch: brings torch along"]


HEAVY = {"torch", "transformers", "tokenizers", "numpy", "aiohttp"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("lightllm_mp", HEAVY),
        ("lightllm_mp.cli.serve", HEAVY),
        ("lightllm_mp.actors.http.actor", HEAVY - {"aiohttp"}),
    ],
)
def test_a_process_imports_only_what_it_needs(module: str, heavy: set[str]) -> None:
    """numpy alone takes 7 MiB in each process."""
    program = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
