"""Writes the tables of classes and functions into docs/python.md, from their signatures and docstrings.

    python -m tools.python_page            # prints what the tables should be
    python -m tools.python_page --write    # puts them into docs/python.md

A test compares the two, so that the page cannot drift.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.harness.command_line import ToolParser

ROOT = Path(__file__).resolve().parents[1]
PAGE, PACKAGE = ROOT / "docs" / "python.md", ROOT / "lightllm_mp"
BEGIN, END = "<!-- tables: tools/python_page.py -->", "<!-- end of tables -->"
CLASSES = {
    "Engine": "offline/engine.py",
    "AsyncEngine": "offline/async_engine.py",
    "Server": "server.py",
    "Completion": "offline/answers.py",
    "ChatCompletion": "offline/answers.py",
    "ChatChunk": "offline/answers.py",
}
"""Public classes, and the modules of the package that define them."""
FUNCTIONS = {"launch": "server.py"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tables() -> str:
    """A section for each class, and one for functions."""
    sections = [_section(name, _defined(file, name)) for name, file in CLASSES.items()]
    rows = [_row(f"lightllm_mp.{name}", _defined(file, name)) for name, file in FUNCTIONS.items()]
    return "\n\n".join([*sections, "\n".join(["### Functions", "", *_head("function"), *rows])])


def _defined(file: str, name: str) -> ast.ClassDef | Function:
    tree = ast.parse((PACKAGE / file).read_text("utf-8"))
    found = (node for node in tree.body if isinstance(node, ast.ClassDef | Function) and node.name == name)
    return next(found)


def _section(name: str, node: ast.ClassDef | Function) -> str:
    head = [f"### {name}", "", _text(node), "", *_head("name")]
    return "\n".join([*head, *(_row(member.name, member) for member in _methods(node)), *_fields(node)])


def _head(first: str) -> list[str]:
    return [f"| {first} | what it is |", "|---|---|"]


def _methods(node: ast.AST) -> Iterator[Function]:
    for member in getattr(node, "body", []):
        if isinstance(member, Function) and not member.name.startswith("_"):
            yield member


def _fields(node: ast.AST) -> Iterator[str]:
    """Fields of a struct: annotated names, with the string below them."""
    body = getattr(node, "body", [])
    for member, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            shown = f"{ast.unparse(member.target)}: {ast.unparse(member.annotation)}"
            yield f"| `{_cell(shown)}` | {_cell(str(text))} |"


def _row(name: str, node: ast.ClassDef | Function) -> str:
    if not isinstance(node, Function):
        raise TypeError(f"{name} is not a function")
    is_property = any(ast.unparse(one) == "property" for one in node.decorator_list)
    shown = name if is_property else f"{name}({_arguments(node.args)})"
    waits = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"| `{waits}{shown}` | {_cell(_text(node))} |"


def _arguments(given: ast.arguments) -> str:
    """The parameters as they are written, without types and self."""
    for argument in (*given.args, *given.kwonlyargs, given.kwarg, given.vararg):
        if argument is not None:
            argument.annotation = None
    given.args = [argument for argument in given.args if argument.arg != "self"]
    return ast.unparse(given)


def _text(node: ast.ClassDef | Function) -> str:
    """The prose of a docstring without its indented examples."""
    paragraphs = (ast.get_docstring(node) or "").split("\n\n")
    return " ".join(" ".join(part.split()) for part in paragraphs if not part.startswith(" "))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def written() -> str:
    """The tables as they stand in the page."""
    return PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0].strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/python.md")
    if parser.parse(argv).write:
        before, rest = PAGE.read_text("utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}", "utf-8")
    else:
        print(tables())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
