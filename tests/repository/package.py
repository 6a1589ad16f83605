"""The package as files: what the repository tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.paths import ROOT

PACKAGE = ROOT / "lightllm_mp"


@cache
def modules() -> dict[str, Path]:
    """Module name to file, for every Python file of the package."""
    return {_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(name: str, module: ast.Module, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that is imported, anywhere in the module, relative imports resolved.

    `from a import b` gives `a.b`, since b may be a module.
    """
    base = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base.split(".")[: len(base.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
