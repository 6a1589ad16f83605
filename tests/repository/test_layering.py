"""Which package may import which. Each layer imports only itself and what stands before it; torch is for workers."""

from __future__ import annotations

import ast

import pytest

from tests.repository.package import imports, modules, tree

LAYERS = (
    "errors facts messages config machine plan sampling_parameters sandbox",
    "model_files",
    "shm",
    "kernels",
    "models",
    "parsers",
    "text",
    "guides",
    "vision",
    "model_description",
    "scheduler",
    "engine",
    "actors",
)
"""Names directly below lightllm_mp. Whatever is not listed (cli, server, ...) is the outside and may import all."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
OUTSIDE = len(LAYERS)

ACTORS = ("runtime", "supervision", "front", "visual", "http")
"""Packages of actors; what stands directly in actors/ (one module an actor, and the topology) is beside them."""

WITH_TORCH = ("kernels", "models", "vision.tower", "engine", "actors.worker", "actors.visual")
"""Packages (and the worker's module) that may import torch; everything else must do without."""
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
        if (beside := _actor_package(target)) and (own := _actor_package(name)) and not _within(own, beside):
            found.append(f"{name}:{line} imports {target}: {own} does not know {beside}")
    return found


def _actor_package(module: str) -> str | None:
    parts = module.split(".")
    return parts[2] if parts[:2] == ["lightllm_mp", "actors"] and len(parts) > 2 and parts[2] in ACTORS else None


def _within(own: str, other: str) -> bool:
    """All actors share the runtime; http is a front; the rest talks through messages."""
    return other in (own, "runtime") or (own, other) == ("http", "front")


@pytest.mark.parametrize("name", modules())
def test_order(name: str) -> None:
    file = modules()[name]
    assert wrong_imports(name, tree(file), file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("lightllm_mp.shm.ring", "from lightllm_mp.engine import executor", True),
        ("lightllm_mp.shm.ring", "from ..engine.executor import Executor", True),
        ("lightllm_mp.shm.ring", "def f():\n    import lightllm_mp.actors.router", True),
        ("lightllm_mp.shm.ring", "from lightllm_mp import Engine", True),
        ("lightllm_mp.shm.ring", "from . import bell\nfrom lightllm_mp import messages\nimport os", False),
        ("lightllm_mp.messages", "from lightllm_mp.errors import EngineError", False),
        ("lightllm_mp.actors.router", "from lightllm_mp.plan import Plan", False),
        ("lightllm_mp.actors.router", "from lightllm_mp.cli.main import main", True),
        ("lightllm_mp.actors.router", "import torch", True),
        ("lightllm_mp.actors.router", "from torch.nn import functional", True),
        ("lightllm_mp.scheduler.rows", "from lightllm_mp.engine.executor import Executor", True),
        ("lightllm_mp.scheduler.rows", "import torch", True),
        ("lightllm_mp.vision.sizing", "import torch", True),
        ("lightllm_mp.vision.tower.vit", "import torch", False),
        ("lightllm_mp.text.tokenizer", "from transformers import AutoTokenizer", True),
        ("lightllm_mp.actors.worker", "import torch", False),
        ("lightllm_mp.actors.workers", "import torch", True),
        ("lightllm_mp.actors.http.app", "from lightllm_mp.actors.front.request_table import RequestTable", False),
        ("lightllm_mp.actors.front.actor", "from lightllm_mp.actors.http.app import create_app", True),
        ("lightllm_mp.actors.front.actor", "from lightllm_mp.actors.visual.actor import VisualActor", True),
        ("lightllm_mp.cli.main", "from lightllm_mp.actors.supervision import supervisor", False),
        ("lightllm_mp.cli.main", "import torch", True),
    ],
)
def test_the_rule_itself(name: str, source: str, wrong: bool) -> None:
    assert bool(wrong_imports(name, ast.parse(source), False)) == wrong


def test_a_package_resolves_its_own_relative_imports() -> None:
    found = list(imports("lightllm_mp.shm", ast.parse("from .ring import Ring\nfrom .. import cli"), True))
    assert found == [(1, "lightllm_mp.shm.ring.Ring"), (2, "lightllm_mp.cli")]


def test_no_folder_is_an_attic() -> None:
    """A folder of more than 25 modules is no index any more."""
    count: dict[str, int] = {}
    for file in modules().values():
        count[str(file.parent)] = count.get(str(file.parent), 0) + 1
    assert {folder: number for folder, number in count.items() if number > 25} == {}
