"""The text of `serve --help`, made from the strings below the fields in config.py."""

from __future__ import annotations

import argparse
import ast
import shutil
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec.inspect as inspect

from lightllm_mp import config
from lightllm_mp.cli.flags.fields import ENV_PREFIX, FlagField, fields, parts
from lightllm_mp.cli.flags.lightllm import ACCEPTED, ALIASES, BY_VALUE, LATER, MEANINGS

COLUMN = 30


class HelpAction(argparse.Action):
    """Prints the text that `const` returns, and exits."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(self.const())
        parser.exit()


def serve_help() -> str:
    """All flags of `serve`, in one section per part of `Config`."""
    docs = field_docs()
    text = [
        "usage: lightllm-mp serve [--model-dir PATH] [--port N] [flags]",
        "",
        "Serve a model over HTTP. Flags may be written with underscores. Each flag --some-name is also the variable",
        f"{ENV_PREFIX}SOME_NAME and the key some_name of --config FILE. Flags override variables; variables override",
        "the file.",
        "",
    ]
    for part, struct in parts().items():
        text.append(f"{(struct.__doc__ or part).splitlines()[0].rstrip('.')}:")
        for field in fields().values():
            if field.part == part:
                text += _entry(f"{field.flag} {metavar(field)}".rstrip(), _described(field, docs[field.name]))
        text.append("")
    text.append("More:")
    text += _entry("--config FILE", "Read settings from a TOML or JSON file.")
    text += _entry("--help-lightllm", "Show how each flag of LightLLM (2024 and 2026) is treated. All are understood.")
    text += _entry("-h, --help", "Show this text.")
    return "\n".join(text)


def lightllm_help() -> str:
    """The treatment of each LightLLM flag that is not a flag of this server."""
    text = ["LightLLM's flags. Those that `serve --help` lists mean the same here. These have another name here:"]
    text += [line for old, new in ALIASES.items() for line in _listed("--" + new.replace("_", "-"), old)]
    for name, values in MEANINGS.items():
        for (field, value), words in _by_meaning(values).items():
            text += _listed(f"--{field.replace('_', '-')} {value}", f"{name} = {' '.join(words)}")
    text += ["", "Accepted without effect, because:"]
    text += [line for why, names in ACCEPTED.items() for line in _listed(why, names)]
    text += ["", "Accepted without effect if they have these values, else refused, because:"]
    text += [line for name, (values, why) in BY_VALUE.items() for line in _listed(why, f"{name} = {values}")]
    text += ["", "Refused, because:"]
    text += [line for why, names in LATER.items() for line in _listed(why, names)]
    return "\n".join(text)


def _by_meaning(values: dict[str, tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    meanings: dict[tuple[str, str], list[str]] = {}
    for word, meaning in values.items():
        meanings.setdefault(meaning, []).append(word)
    return meanings


def _listed(why: str, names: str) -> list[str]:
    return [f"  {why}:", *textwrap.wrap(names, _width(), initial_indent=" " * 6, subsequent_indent=" " * 6)]


def field_docs() -> dict[str, str]:
    """The string below each field in config.py, by the name of the field."""
    tree = ast.parse(Path(str(config.__file__)).read_text(encoding="utf-8"))
    structs = {struct.__name__ for struct in parts().values()}
    found = (_docs_below(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name in structs)
    return {name: doc for pairs in found for name, doc in pairs}


def _docs_below(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, " ".join(below.value.value.split())


def _described(field: FlagField, doc: str) -> str:
    if field.type is bool or field.default in (None, ()):
        return doc
    return f"{doc} [{field.default}]"


def _entry(flag: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, _width() - COLUMN)
    if len(flag) + 4 > COLUMN:
        return [f"  {flag}", *(" " * COLUMN + line for line in lines)]
    return [f"  {flag}".ljust(COLUMN) + lines[0], *(" " * COLUMN + line for line in lines[1:])]


def _width() -> int:
    return min(120, max(60, shutil.get_terminal_size((100, 24)).columns))


def metavar(field: FlagField) -> str:
    """The placeholder for the flag's value in the help."""
    plain = _plain(field.type)
    if typing.get_origin(plain) is Literal:
        return "{" + ",".join(typing.get_args(plain)) + "}"
    if field.many:
        return "N [N ...]" if typing.get_args(plain)[0] is int else "TEXT [TEXT ...]"
    if field.name.endswith(("_timeout", "_window", "_seconds")):
        return "SECONDS"
    if field.name.endswith(("_dir", "file")):
        return "PATH"
    kind = inspect.type_info(plain)
    words = ((inspect.BoolType, ""), (inspect.IntType, "N"), (inspect.FloatType, "X"))
    return next((word for known, word in words if isinstance(kind, known)), "TEXT")


def expected(annotation: Any) -> str:
    """A type in words, for error messages."""
    plain = _plain(annotation)
    if typing.get_origin(plain) is Literal:
        return "one of " + ", ".join(typing.get_args(plain))
    kind = inspect.type_info(plain)
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.VarTupleType):
        return "whole numbers" if isinstance(kind.item_type, inspect.IntType) else "words"
    if isinstance(kind, inspect.IntType):
        return "a whole number" + _range(kind)
    if isinstance(kind, inspect.FloatType):
        return "a number" + _range(kind)
    return "text"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    bounds = (("above", kind.gt), ("at least", kind.ge), ("below", kind.lt), ("at most", kind.le))
    said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return " " + " and ".join(said) if said else ""


def _plain(annotation: Any) -> Any:
    """The type without `| None`."""
    if type(None) in typing.get_args(annotation):
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation
