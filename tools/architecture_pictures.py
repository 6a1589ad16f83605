"""Writes the pictures of processes and of packages into docs/architecture.md, from the topology and the imports.

    python -m tools.architecture_pictures            # prints what the pictures should be
    python -m tools.architecture_pictures --write    # puts them into docs/architecture.md

A test compares the two, so that the page cannot drift.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightllm_mp.actors.topology import SUPERVISOR, ImageArenas, topology
from tools.harness.command_line import ToolParser

ROOT = Path(__file__).resolve().parents[1]
PAGE, PACKAGE = ROOT / "docs" / "architecture.md", ROOT / "lightllm_mp"


def processes() -> str:
    """A server of images on two ranks. An arrow is a lane; the supervisor's lanes, one each way with everybody, are
    left out."""
    plan = topology(ranks=2, images=ImageArenas(cache=1, files=1))
    drawn = [
        f"    {edge.first} <--> {edge.second}" for edge in plan.edges if SUPERVISOR not in (edge.first, edge.second)
    ]
    shared = [
        f"    visual -. embeddings .-> {child.name}" for child in plan.children if child.name.startswith("worker")
    ]
    return "\n".join(["```mermaid", "flowchart LR", *drawn, *shared, "```"])


def packages() -> str:
    """An arrow is an import; one that a longer path implies is left out."""
    arrows = _imports()
    drawn = [f"    {name} --> {other}" for name in sorted(arrows) for other in sorted(_direct(name, arrows))]
    return "\n".join(["```mermaid", "flowchart TD", *drawn, "```"])


def _direct(name: str, arrows: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    for other in arrows[name]:
        reached |= _reached(other, arrows, {name})
    return arrows[name] - reached


def _reached(name: str, arrows: dict[str, set[str]], seen: set[str]) -> set[str]:
    """All packages that `name` reaches without passing `seen`."""
    found: set[str] = set()
    for other in arrows.get(name, set()) - seen:
        found |= {other} | _reached(other, arrows, seen | {name, other} | found)
    return found


def _imports() -> dict[str, set[str]]:
    """Package -> the packages that its modules import at run time."""
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if package := _package(module):
            targets = map(_package, _targets(ast.parse(file.read_text(encoding="utf-8"))))
            found.setdefault(package, set()).update(target for target in targets if target and target != package)
    return found


def _targets(tree: ast.Module) -> Iterator[str]:
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _package(module: str) -> str | None:
    """The package directly below lightllm_mp that contains the module; None if there is none."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE.name and len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


PICTURES = {"processes": processes, "packages": packages}


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- picture: {name}, by tools/architecture_pictures.py -->", f"<!-- end of {name} -->"


def written(name: str) -> str:
    """The picture as it stands in the page."""
    begin, end = _marks(name)
    return PAGE.read_text().split(begin)[1].split(end)[0].strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/architecture.md")
    write = parser.parse(argv).write
    for name, picture in PICTURES.items():
        if write:
            begin, end = _marks(name)
            before, rest = PAGE.read_text().split(begin)
            PAGE.write_text(f"{before}{begin}\n\n{picture()}\n\n{end}{rest.split(end)[1]}")
        else:
            print(picture())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
