"""Names that a reader can search for: a public class once in the package, no word for two things."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.repository.package import imports, modules, tree

SAME_IDEA = {"command", "errors", "overlay", "quantised", "rules", "spec"}
"""The same idea, once for each command, device or layer."""


def test_public_class_names_are_unique() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, file in modules().items():
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_imports_two_modules_of_one_name() -> None:
    """`from a.config import X` beside `from b.config import Y`: a reader cannot tell which config is meant."""
    wrong = {}
    for name, file in modules().items():
        base: dict[str, set[str]] = defaultdict(set)
        for _, target in imports(name, tree(file), file.name == "__init__.py"):
            if (module := _module(target)) is not None and module != name:
                base[module.rpartition(".")[2]].add(module)
        if twice := {word: found for word, found in base.items() if len(found) > 1 and word not in SAME_IDEA}:
            wrong[name] = twice
    assert wrong == {}


def _module(target: str) -> str | None:
    """The module of the package that `target` is, or is in."""
    known = modules()
    return next((found for found in (target, target.rpartition(".")[0]) if found in known), None)
