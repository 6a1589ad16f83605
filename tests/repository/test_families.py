"""Every model family is declared once, in the registry, with all its halves; no other table stands beside it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from importlib import import_module

import pytest

from lightllm_mp.models.families import FAMILIES, Family, by_gguf_architecture, find_gguf_text_half, find_text_half
from lightllm_mp.models.families.common.text_half import ModelFolder
from lightllm_mp.vision.tower_rules import VisionFamily, vision_family
from tests.paths import ROOT
from tests.repository.package import modules, tree
from tests.text.tokenizer_samples import byte_level_backend

READERS = {
    "lightllm_mp.text.gguf_tokenizer": {"general.architecture"},  # asks the registry
    "lightllm_mp.vision.mmproj": {
        "general.architecture"
    },  # checks that it is a vision tower; the language model's keys
    "lightllm_mp.vision.families.llava": {"model_type"},  # of the tower inside the configuration
}
"""Modules of text/ and vision/ that name the key of a model's kind, and which."""


def twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def declared(package: str, kind: type) -> dict[int, str]:
    """Objects of `kind` in the modules of a package and its packages, by identity: where they are first found."""
    found = {}
    for name in modules():
        if name.startswith(package + ".") and not name.startswith(package + ".common"):
            found |= {
                id(value): f"{name}:{key}" for key, value in vars(import_module(name)).items() if type(value) is kind
            }
    return found


def test_names_are_claimed_once() -> None:
    assert twice(family.name for family in FAMILIES) == []
    assert twice(name for family in FAMILIES for name in family.model_types) == []
    assert twice(name for family in FAMILIES for name in family.gguf_architectures) == []
    texts = {id(family.text): family.text for family in FAMILIES if family.text}.values()
    assert twice(name for text in texts for name in text.tokenizer_classes) == []
    towers = {family.vision: tower for family in FAMILIES if (tower := vision_family(family))}.values()
    assert twice(name for tower in towers for name in tower.projector_types) == []


def test_every_declaration_is_in_the_registry() -> None:
    families = declared("lightllm_mp.models.families", Family)
    assert set(families) == {id(family) for family in FAMILIES}
    towers = declared("lightllm_mp.vision.families", VisionFamily)
    assert set(towers.values()) == {family.vision for family in FAMILIES if family.vision}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_declares_both_sides_of_what_it_has(family: Family) -> None:
    assert family.models
    assert family.model_types or family.detect
    assert bool(family.gguf_architectures) == bool(family.read_gguf) == bool(family.gguf_weights)
    if family.gguf_written_as:
        assert not family.gguf_architectures
        assert by_gguf_architecture(family.gguf_written_as, where="")
    if (tower := vision_family(family)) is not None:
        assert bool(tower.projector_types) == bool(tower.read_gguf) == bool(tower.gguf_weights)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.text], ids=lambda family: family.name)
def test_a_text_half_is_found(family: Family, tmp_path) -> None:
    for name in family.text.tokenizer_classes:
        assert find_text_half(ModelFolder(tmp_path, {}, {"tokenizer_class": name}, {})) is family.text
    for name in family.model_types:
        assert find_text_half(ModelFolder(tmp_path, {"model_type": name}, {}, {})) is family.text
        other = {"tokenizer_class": "AnotherTokenizer"}
        assert find_text_half(ModelFolder(tmp_path, {"model_type": name}, other, {})) is None
    for name in family.gguf_architectures:
        assert find_gguf_text_half(name) is family.text


def test_no_other_module_asks_for_the_kind_of_a_model() -> None:
    """A table keyed by model type, architecture or tokenizer class of a family has to read one of these keys first."""
    keys = {"model_type", "architectures", "general.architecture"}
    claimed = {name for family in FAMILIES if family.text for name in family.text.tokenizer_classes}
    found: dict[str, set[str]] = {}
    for name, file in modules().items():
        if name.startswith(("lightllm_mp.text.", "lightllm_mp.vision.")):
            strings = {node.value for node in ast.walk(tree(file)) if isinstance(node, ast.Constant)}
            if used := strings & (keys | claimed):
                found[name] = used
    assert found == READERS


def test_a_tokenizer_process_imports_neither_torch_nor_vision(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')
    byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    program = f"""
import sys
from lightllm_mp.models.families import FAMILIES
assert not {{"torch", "tokenizers", "gguf", "PIL"}} & set(sys.modules)
from lightllm_mp.text.tokenizer import load_tokenizer
assert "问" in load_tokenizer({str(tmp_path)!r}).chat_template
assert not {{"torch", "transformers"}} & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("lightllm_mp.vision")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)
