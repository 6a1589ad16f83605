"""Hugging Face folders: which files are read, which win, what is refused, and that nothing of them is run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from lightllm_mp.errors import ModelError, NoTokenizer
from lightllm_mp.text.token_bytes import byte_level_piece
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.tokenizer_samples import byte_level_backend, sentencepiece_backend


def write_json(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    return write_json(tmp_path, tokenizer_config={"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}})


def test_tokenizer_json(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the other").tolist() == byte_level_backend().encode("the other").ids
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1,))
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.chat_template is None


def test_truncation_and_padding_of_the_file_are_off(folder: Path) -> None:
    backend = byte_level_backend()
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    assert (
        load_tokenizer(folder).encode("the other brother").tolist()
        == byte_level_backend().encode("the other brother").ids
    )


def test_every_declared_end_counts(folder: Path) -> None:
    write_json(folder, generation_config={"eos_token_id": [5, 1, 7]}, config={"eos_token_id": 99})
    assert load_tokenizer(folder).eos_ids == (1, 5, 7)
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(folder).eos_ids == (1, 99)


def test_tokens_that_only_the_config_declares(folder: Path) -> None:
    size = byte_level_backend().get_vocab_size()
    added = {
        str(size): {"content": "<|turn|>", "special": True},
        str(size + 1): {"content": "<think>", "special": False},
    }
    write_json(folder, tokenizer_config={"added_tokens_decoder": added, "eos_token": "<|turn|>"})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("<|turn|><think>").tolist() == [size, size + 1]
    assert tokenizer.eos_ids == (size,)
    assert tokenizer.is_special(size)
    assert not tokenizer.is_special(size + 1)


def test_an_added_token_with_a_wrong_id_is_refused(folder: Path) -> None:
    write_json(folder, tokenizer_config={"added_tokens_decoder": {"9999": {"content": "<x>", "special": True}}})
    with pytest.raises(ModelError, match="declared id 9999"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("flag", "ids"), [(True, [1]), (False, [])])
def test_llama_flags_decide_about_bos(tmp_path: Path, flag: bool, ids: list[int]) -> None:
    backend = sentencepiece_backend()
    if not flag:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": flag}
    tokenizer = load_tokenizer(write_json(tmp_path, tokenizer_config=config))
    plain = sentencepiece_backend().encode("hello").ids
    assert tokenizer.encode("hello").tolist() == ids + plain
    assert tokenizer.encode("hello", add_special_tokens=False).tolist() == plain


def test_chat_templates_and_which_wins(folder: Path) -> None:
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    write_json(folder, tokenizer_config={"chat_template": named})
    assert load_tokenizer(folder).chat_templates == {"default": "A", "tool_use": "B"}
    (folder / "chat_template.jinja").write_text("C")
    assert load_tokenizer(folder).chat_template == "C"


def test_vocab_and_merges(tmp_path: Path) -> None:
    model = json.loads(byte_level_backend().model.__getstate__())
    write_json(tmp_path, vocab=model["vocab"])
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("the other 你").tolist() == byte_level_backend().encode("the other 你").ids


def test_tiktoken_table(tmp_path: Path) -> None:
    """Ranks of a byte pair table give the same words back; the picture tags follow where the model has pictures."""
    words = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"er", "你".encode()]
    lines = [base64.b64encode(word) + b" %d" % i for i, word in enumerate(words)]
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(lines))
    tokenizer = load_tokenizer(write_json(tmp_path, config={"visual": {}}))
    assert [tokenizer.token_bytes(int(i)) for i in tokenizer.encode("the there")] == [b"the", b" the", b"r", b"e"]
    assert tokenizer.encode("你").tolist() == [260]
    assert tokenizer.token_to_id("<|endoftext|>") == len(words)
    assert tokenizer.token_to_id("<img>") == len(words) + 3 + 205 + 6
    assert tokenizer.eos_ids == (len(words),)


def test_no_tokenizer(tmp_path: Path) -> None:
    write_json(tmp_path, config={"model_type": "llama"})
    with pytest.raises(NoTokenizer) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "no_tokenizer"
    assert str(tmp_path.parent) not in caught.value.message


def test_code_of_the_folder_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "tokenization_own.py").write_text(f"open({str(marker)!r}, 'w').close()")
    write_json(tmp_path, tokenizer_config={"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}})
    with pytest.raises(NoTokenizer, match="its own tokenizer code is never run"):
        load_tokenizer(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", "[" * 100_000),
    ],
)
def test_damaged_files(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=name):
        load_tokenizer(folder)


def test_byte_level_alphabet_is_that_of_the_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é a\n\x00")[0][0]
    assert byte_level_piece(spelled) == "é a\n\x00".encode()
    assert {byte_level_piece(char) for char in ByteLevel.alphabet()} == {bytes([byte]) for byte in range(256)}
