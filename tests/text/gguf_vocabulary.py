"""Writes the tokenizer of a model folder into a GGUF file, the way llama.cpp's convert_hf_to_gguf.py does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import TokenType
from tokenizers import Tokenizer

GLM_NAMES = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def write_vocabulary(path: Path, folder: Path, architecture: str, *, pre: str = "default", **keys: Any) -> Path:
    """`pre` is the name that the converter would find; `keys` of the tokenizer are added."""
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "chatglm":
        tokens, scores, types = _glm(folder)
        _sentencepiece(writer, tokens, scores, types, "chatglm-spm")
    elif (folder / "tokenizer.model").is_file():
        tokens, scores, types = _pieces(folder)
        _sentencepiece(writer, tokens, scores, types, pre)
    else:
        _byte_level(writer, folder, pre)
    for key, value in keys.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    writer.add_tensor("weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sentencepiece(writer: gguf.GGUFWriter, tokens: list, scores: list, types: list, pre: str) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)


def _library(folder: Path) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def _type(pieces: Any, i: int) -> TokenType:
    known = (
        (pieces.IsUnknown, TokenType.UNKNOWN),
        (pieces.IsControl, TokenType.CONTROL),
        (pieces.IsUnused, TokenType.UNUSED),
        (pieces.IsByte, TokenType.BYTE),
    )
    return next((kind for told, kind in known if told(i)), TokenType.NORMAL)


def _pieces(folder: Path) -> tuple[list, list, list]:
    """The pieces, then what tokenizer_config.json declares, its spaces written as spaces."""
    pieces = _library(folder)
    tokens = [pieces.IdToPiece(i) for i in range(pieces.vocab_size())]
    scores, types = [pieces.GetScore(i) for i in range(len(tokens))], [_type(pieces, i) for i in range(len(tokens))]
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    for key, entry in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        i, special = int(key), entry.get("special", False)
        while len(tokens) <= i:
            tokens, scores, types = [*tokens, ""], [*scores, 0.0], [*types, TokenType.UNUSED]
        tokens[i] = entry["content"] if special else entry["content"].replace("▁", " ")
        scores[i], types[i] = -1000.0, TokenType.CONTROL if special else TokenType.USER_DEFINED
    return tokens, scores, types


def _glm(folder: Path) -> tuple[list, list, list]:
    """ChatGLM3: the special tokens follow the pieces, and the first three have names of their own."""
    pieces = _library(folder)
    tokens = ["<unk>", "<bos>", "<eos>", *(pieces.IdToPiece(i) for i in range(3, pieces.vocab_size()))]
    scores, types = [pieces.GetScore(i) for i in range(len(tokens))], [_type(pieces, i) for i in range(len(tokens))]
    more = len(GLM_NAMES)
    return [*tokens, *GLM_NAMES], [*scores, *[0.0] * more], [*types, *[TokenType.CONTROL] * more]


def _byte_level(writer: gguf.GGUFWriter, folder: Path, pre: str) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = backend.get_added_tokens_decoder()
    size = max(backend.get_vocab().values()) + 1
    tokens = [backend.id_to_token(i) for i in range(size)]
    kinds = {i: TokenType.UNUSED for i, token in enumerate(tokens) if token is None}
    kinds |= {i: TokenType.CONTROL if token.special else TokenType.USER_DEFINED for i, token in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)])
    writer.add_token_types([kinds.get(i, TokenType.NORMAL) for i in range(size)])
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
