"""Constructs that have no place here: anything that turns data into code, and files nobody can read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.repository.package import PACKAGE, ROOT, imports, modules, tree

MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
DOTTED = {"torch.multiprocessing", "numpy.lib.format"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "yaml.load": "yaml.safe_load is there",
    "yaml.unsafe_load": "yaml.safe_load is there",
    "os.system": "it starts a shell",
    "os.popen": "it starts a shell",
}
LONGEST = 400
WHOLE_MAP = "lightllm_mp/messages.py"
"""All that is said in one place is worth more than a short file."""


def wrong(module: ast.Module) -> Iterator[str]:
    """One line for each forbidden construct."""
    for line, target in imports("x", module, False):
        if target.split(".")[0] in MODULES or any(target.startswith(name) for name in DOTTED):
            yield f"{line}: imports {target}"
        if target in CALLS:
            yield f"{line}: imports {target}, {CALLS[target]}"
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {reason}" for reason in _wrong_call(node))


def _wrong_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""
    values = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else "?" for k in call.keywords}
    if name in BUILTINS or name in {f"builtins.{builtin}" for builtin in BUILTINS}:
        yield f"calls {name}"
    if name in CALLS:
        yield f"calls {name}, {CALLS[name]}"
    if name == "torch.load" and values.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name.endswith("import_module") and _forbidden_text(call):
        yield "imports a forbidden module by name"
    for argument in ("trust_remote_code", "allow_pickle", "shell"):
        if values.get(argument) is True:
            yield f"says {argument}=True"


def _forbidden_text(call: ast.Call) -> bool:
    return any(isinstance(a, ast.Constant) and str(a.value).split(".")[0] in MODULES for a in call.args)


@pytest.mark.parametrize("name", modules())
def test_no_data_becomes_code(name: str) -> None:
    assert list(wrong(tree(modules()[name]))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch.multiprocessing as mp",
        "from torch import multiprocessing",
        "from multiprocessing import shared_memory",
        "import importlib\nimportlib.import_module('dill')",
        "eval('1')",
        "exec(text)",
        "__import__('os')",
        "yaml.load(text)",
        "from yaml import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert list(wrong(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "from_pretrained(path, trust_remote_code=config.trust_remote_code)",
        "# eval(pickle)\nx = 'import pickle'",
    ],
)
def test_the_check_is_quiet_about(source: str) -> None:
    assert not list(wrong(ast.parse(source)))


def test_no_file_is_too_long() -> None:
    folders = (PACKAGE, *map(ROOT.joinpath, ("scripts", "tools", "tests")))
    files = [file for folder in folders for file in folder.rglob("*.py")]
    long = {str(f.relative_to(ROOT)): n for f in files if (n := len(f.read_text("utf-8").splitlines())) > LONGEST}
    long.pop(WHOLE_MAP, None)
    assert long == {}
