"""Who may import whom. Each layer imports only itself and what stands before it; torch is for workers."""

from __future__ import annotations

import ast

import pytest
from package import imports, modules, tree

LAYERS = (
    "errors messages config machine",
    "gguf_header",
    "shm",
    "text",
    "kernels",
    "models",
    "vision",
    "engine",
    "actors",
)
"""Names directly below lightllm_mp. Whatever is not listed (cli, launch, ...) is the outside and may import all."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
OUTSIDE = len(LAYERS)

WORKER_HALF = """
    device_sampling device_steps drawing executor graphs host_steps image_memory logprobs memory model noise penalties
    prompt_logprobs ranking rules sampling setup staging step tables truncation warm_up
"""
"""Modules of the engine that run in workers; the other half schedules and runs in the router."""
ENGINE = tuple(f"engine.{name}" for name in WORKER_HALF.split())
WITH_TORCH = ("kernels", "models", "vision", *ENGINE, "actors.worker", "actors.visual")
"""Modules, and packages with all that is in them, that may import torch; everything else must do without."""
TORCH = {"torch", "transformers", "triton", "safetensors.torch"}


def rank(module: str) -> int:
    """Place in the order of a module of this package."""
    parts = module.split(".")
    return RANK.get(parts[1], OUTSIDE) if len(parts) > 1 else OUTSIDE


def may_use_torch(module: str) -> bool:
    inner = module.removeprefix("lightllm_mp.")
    return any(inner == name or inner.startswith(name + ".") for name in WITH_TORCH)


def wrong_imports(name: str, module: ast.Module, is_package: bool) -> list[str]:
    """What breaks the order or brings torch where it must not be, one line each."""
    found = []
    for line, target in imports(name, module, is_package):
        top = ".".join(target.split(".")[:2]) if target.startswith("safetensors.torch") else target.split(".")[0]
        if top == "lightllm_mp" and rank(target) > rank(name):
            found.append(f"{name}:{line} imports {target}, which stands after it")
        if top in TORCH and not may_use_torch(name):
            found.append(f"{name}:{line} imports {target}, but only worker and visual code may")
    return found


@pytest.mark.parametrize("name", modules())
def test_order(name: str) -> None:
    file = modules()[name]
    assert wrong_imports(name, tree(file), file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("lightllm_mp.shm.ring", "from lightllm_mp.engine import plan", True),
        ("lightllm_mp.shm.ring", "from ..engine.plan import Plan", True),
        ("lightllm_mp.shm.ring", "def f():\n    import lightllm_mp.actors.router", True),
        ("lightllm_mp.shm.ring", "from lightllm_mp import Engine", True),
        ("lightllm_mp.shm.ring", "from . import bell\nfrom lightllm_mp import messages\nimport os", False),
        ("lightllm_mp.messages", "from lightllm_mp.errors import EngineError", False),
        ("lightllm_mp.actors.router", "from lightllm_mp.engine.plan import Plan", False),
        ("lightllm_mp.actors.router", "from lightllm_mp.cli import main", True),
        ("lightllm_mp.actors.router", "import torch", True),
        ("lightllm_mp.actors.router", "from torch.nn import functional", True),
        ("lightllm_mp.text.tokenizer", "from transformers import AutoTokenizer", True),
        ("lightllm_mp.actors.worker", "import torch", False),
        ("lightllm_mp.actors.workers", "import torch", True),
        ("lightllm_mp.cli", "from lightllm_mp.actors import supervisor", False),
        ("lightllm_mp.cli", "import torch", True),
    ],
)
def test_the_rule_itself(name: str, source: str, wrong: bool) -> None:
    assert bool(wrong_imports(name, ast.parse(source), False)) == wrong


def test_a_package_resolves_its_own_relative_imports() -> None:
    found = list(imports("lightllm_mp.shm", ast.parse("from .ring import Ring\nfrom .. import cli"), True))
    assert found == [(1, "lightllm_mp.shm.ring.Ring"), (2, "lightllm_mp.cli")]
