"""GGUF headers: what a writer wrote is read, what is damaged is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.errors import ModelError, NoTokenizer
from lightllm_mp.model_files.gguf_header import is_gguf, read_header
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.tokenizer_samples import byte_level_backend, sentencepiece_backend


def write(path: Path, fill) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.add_tensor("weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fill_byte_level(writer: gguf.GGUFWriter) -> None:
    backend = byte_level_backend()
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 3) + [4])
    merges = json.loads(backend.model.__getstate__())["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])


def fill_sentencepiece(writer: gguf.GGUFWriter) -> None:
    backend = sentencepiece_backend()
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    order = ["he", "ll", "hell", "hello", "▁w", "or", "▁hello", "ld", "▁▁"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(
        [-float(order.index(token)) if token in order else -100.0 - i for i, token in enumerate(tokens)]
    )
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def test_values_of_every_type(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint8("a.u8", 200)
        writer.add_int32("a.i32", -5)
        writer.add_uint64("a.u64", 2**40)
        writer.add_float32("a.f32", 0.5)
        writer.add_bool("a.bool", True)
        writer.add_string("a.text", "grüße")
        writer.add_array("a.ints", [1, 2, 3])
        writer.add_array("a.texts", ["x", "", "你"])

    header = read_header(write(tmp_path / "m.gguf", fill))
    assert header["general.architecture"] == "llama"
    assert header["a.u8"] == 200
    assert header["a.i32"] == -5
    assert header["a.u64"] == 2**40
    assert header["a.f32"] == 0.5
    assert header["a.bool"] is True
    assert header["a.text"] == "grüße"
    assert header["a.ints"].tolist() == [1, 2, 3]
    assert header["a.texts"] == ["x", "", "你"]
    assert set(read_header(tmp_path / "m.gguf", wanted=lambda key: key == "a.u8")) == {"a.u8"}


def test_byte_level_tokenizer_is_the_one_that_was_written(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", fill_byte_level))
    backend = byte_level_backend()
    for text in ("the other brother", "don't 12 你好 😀", "a<|end|>b<tool call>"):
        assert tokenizer.encode(text, add_special_tokens=False).tolist() == backend.encode(text).ids
        assert tokenizer.encode(text).tolist() == [0, *backend.encode(text).ids]
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.chat_templates == {"default": "D", "tool_use": "T"}
    assert tokenizer.rule is not None


def test_sentencepiece_tokenizer_from_scores(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", fill_sentencepiece))
    backend = sentencepiece_backend()
    for text in ("hello world", "  hell or 你好 z 😀", "hello</s>hello", ""):
        assert tokenizer.encode(text, add_special_tokens=False).tolist() == backend.encode(text).ids
        assert tokenizer.encode(text).tolist() == [1, *backend.encode(text).ids]
    assert tokenizer.decode(tokenizer.encode("hello 你 😀")) == "hello 你 😀"
    assert tokenizer.special_ids == {0, 1, 2}


def test_no_tokenizer_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizer) as caught:
        load_tokenizer(write(tmp_path / "m.gguf", lambda writer: None))
    assert caught.value.code == "no_tokenizer"


def test_names_of_tokens_alone_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizer):
        load_tokenizer(write(tmp_path / "m.gguf", lambda writer: writer.add_token_list(["a", "b"])))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", "'bert' is not supported"),
        ("tokenizer.ggml.pre", "martian", "'martian' is not supported"),
    ],
)
def test_unsupported_kinds_are_named(tmp_path: Path, key: str, value: str, message: str) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        fill_byte_level(writer)
        writer.kv_data[0][key].value = value

    with pytest.raises(ModelError, match=message):
        load_tokenizer(write(tmp_path / "m.gguf", fill))


def test_merges_that_do_not_fit(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        fill_byte_level(writer)
        writer.kv_data[0]["tokenizer.ggml.merges"].value = ["q zzz"]

    with pytest.raises(ModelError, match="do not match"):
        load_tokenizer(write(tmp_path / "m.gguf", fill))


def header_bytes(kv: bytes, *, count: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, count) + kv


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        header_bytes(b"", count=1),
        header_bytes(b"", count=2**60),
        header_bytes(b"", version=9),
        header_bytes(struct.pack("<Q", 2**62) + b"k"),
        header_bytes(KEY + struct.pack("<I", 77) + b"\0" * 8),
        header_bytes(KEY + struct.pack("<IQ", 8, 2**63)),
        header_bytes(KEY + struct.pack("<IIQ", 9, 8, 2**50)),
        header_bytes(KEY + struct.pack("<IIQ", 9, 8, 1000)),
        header_bytes(KEY + struct.pack("<IIQQ", 9, 8, 1, 2**63)),
        header_bytes(KEY + struct.pack("<IIQ", 9, 5, 2**23)),
        header_bytes(KEY + struct.pack("<IIQ", 9, 9, 1)),
    ],
)
def test_sizes_are_not_believed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert is_gguf(path)
    with pytest.raises(ModelError):
        read_header(path)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(4, 4000), flips=st.lists(st.tuples(st.integers(4, 4000), st.integers(0, 255)), max_size=4))
def test_damaged_headers_are_refused_or_read(tmp_path_factory, cut: int, flips: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole.gguf"
    if not whole.exists():
        write(whole, fill_byte_level)
    data = bytearray(whole.read_bytes())
    for at, value in flips:
        data[at % len(data)] = value
    damaged = folder / "damaged.gguf"
    damaged.write_bytes(data[:cut] if cut % 2 else data)
    try:
        header = read_header(damaged)
    except ModelError:
        return
    assert all(isinstance(key, str) for key in header)
