"""Small model folders of the families with tokenizers of their own, and what the original libraries say about them."""

from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lightllm_mp.text.detokenizer import IncrementalText
from lightllm_mp.text.token_bytes import byte_level_piece
from lightllm_mp.text.tokenizer import Tokenizer as TextTokenizer
from tests.text.tokenizer_samples import CORPUS

ROUND_TRIPS = [
    "",
    "你好，世界！今天天气怎么样？“引号”……",
    "emoji 😀 👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪 ❤️",
    "def f(x):\n\treturn  x  +\t1\n\n\n    # four   spaces\r\n\tif  x:\n\t\tpass\n",
    "The quick brown fox isn't 12345.",
    "a philosophy of sop, eop and [MASKS]",
    "한글 Привет ไทย עברית \u00a0\u3000 end",
]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
QWEN_PICTURES = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")


def write(folder: Path, **files: Any) -> Path:
    """Writes `files` as JSON: tokenizer_config={...} becomes tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@cache
def sentencepiece_model(*symbols: str, kind: str = "bpe", prefix: bool = True) -> bytes:
    """A model of about 500 pieces with these user-defined symbols, which follow <unk>, <s> and </s>."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n")] * 4),
        model_writer=model,
        vocab_size=500,
        model_type=kind,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=list(symbols),
    )
    return model.getvalue()


def sentencepiece_folder(folder: Path, *symbols: str, prefix: bool = True, **files: Any) -> tuple[Path, Any]:
    """A folder with such a model as tokenizer.model, and the library's own reading of it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece_model(*symbols, prefix=prefix)
    write(folder, **files)
    (folder / "tokenizer.model").write_bytes(model)
    return folder, sentencepiece.SentencePieceProcessor(model_proto=model)


@cache
def qwen_ranks() -> tuple[bytes, ...]:
    """Tokens of a byte pair table in the order of their ranks: the bytes, then merges learned from the corpus."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    backend.train_from_iterator([*CORPUS, *ROUND_TRIPS] * 3, trainer)
    by_id = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return tuple(byte_level_piece(token) for token, _ in by_id)


def qwen_table(tokens: Iterable[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def qwen_folder(folder: Path, **files: Any) -> Path:
    write(folder, tokenizer_config={"tokenizer_class": "QWenTokenizer"}, **files)
    (folder / "qwen.tiktoken").write_bytes(qwen_table(qwen_ranks()))
    return folder


def qwen_encode(text: str, *, special: Iterable[str] = QWEN_TOKENS) -> list[int]:
    """What tiktoken makes of `text` with Qwen's pattern and tokens."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: rank for rank, token in enumerate(qwen_ranks())}
    tokens = {token: len(ranks) + i for i, token in enumerate(special)}
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=tokens)
    return encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")


KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
    )
)
KIMI_NAMED = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|tool_calls_section_begin|>")


def kimi_special() -> tuple[str, ...]:
    """The special tokens in the order of their ids; the last named one stands behind a gap."""
    first = len(qwen_ranks())
    names = {first + i: name for i, name in enumerate(KIMI_NAMED[:-1])} | {first + 11: KIMI_NAMED[-1]}
    return tuple(names.get(id_, f"<|reserved_token_{id_}|>") for id_ in range(first, first + 256))


def kimi_folder(folder: Path) -> Path:
    declared = {
        str(len(qwen_ranks()) + i): {"content": name, "special": not name.startswith("<|tool")}
        for i, name in enumerate(kimi_special())
        if name in KIMI_NAMED
    }
    config = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": declared, "eos_token": "[EOS]"}
    write(folder, tokenizer_config=config, config={"model_type": "kimi_k2"})
    (folder / "tiktoken.model").write_bytes(qwen_table(qwen_ranks()))
    return folder


def kimi_encode(text: str) -> list[int]:
    """What tiktoken makes of `text` with Kimi's pattern and tokens."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: rank for rank, token in enumerate(qwen_ranks())}
    tokens = {token: len(ranks) + i for i, token in enumerate(kimi_special())}
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=tokens)
    return encoding.encode(text, allowed_special="all")


def cut_encode(processor: Any, text: str, tokens: dict[str, int]) -> list[int]:
    """Ids as the slow tokenizers of transformers make them: added tokens cut, SentencePiece encodes what is between."""
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, tokens)) + ")", text):
        ids += [tokens[part]] if part in tokens else processor.encode(part)
    return ids


def streamed(tokenizer: TextTokenizer, ids: Iterable[int], **options: Any) -> str:
    """The text of `ids`, token by token; no piece of it may hold a replacement character."""
    text = IncrementalText(tokenizer, **options)
    pieces = [*(text.push(int(id_)) for id_ in ids), text.finish()]
    assert not any("\ufffd" in piece for piece in pieces)
    return "".join(pieces)


GLM = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
TURNS = {"<|im_start|>": "[UNUSED_TOKEN_146]", "<|im_end|>": "[UNUSED_TOKEN_145]"}
BAICHUAN = ("<reserved_106>", "<reserved_107>")


def folder_of(family: str, folder: Path) -> tuple[Path, Any]:
    """A model folder of `family`, and SentencePiece's reading of its vocabulary (None for Qwen)."""
    match family:
        case "qwen":
            return qwen_folder(folder), None
        case "qwen_vl":
            return qwen_folder(folder, config={"model_type": "qwen", "visual": {}}), None
        case "chatglm2" | "chatglm3":
            config = {"tokenizer_class": "ChatGLMTokenizer"}
            name = {"model_type": "chatglm", "_name_or_path": f"THUDM/{family}-6b", "eos_token_id": 2}
            return sentencepiece_folder(folder, tokenizer_config=config, config=name)
        case "baichuan":
            config = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False}
            generation = {"user_token_id": 3, "assistant_token_id": 4, "eos_token_id": 2}
            return sentencepiece_folder(folder, *BAICHUAN, tokenizer_config=config, generation_config=generation)
        case "internlm":
            config = {"tokenizer_class": "InternLMTokenizer"}
            return sentencepiece_folder(folder, "<eoh>", "<eoa>", tokenizer_config=config)
        case "internlm2":
            config = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": {}}
            for id_, name in ((3, "<|im_end|>"), (4, "<|im_start|>")):
                config["added_tokens_decoder"][str(id_)] = {"content": name, "special": True}
            unused = ("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_0]")
            return sentencepiece_folder(folder, *unused, prefix=False, tokenizer_config=config)
    raise AssertionError(family)


FAMILIES = ["qwen", "qwen_vl", "chatglm2", "chatglm3", "baichuan", "internlm", "internlm2"]
SPECIAL = {
    "qwen": QWEN_TOKENS,
    "qwen_vl": QWEN_TOKENS + QWEN_PICTURES,
    "chatglm2": ("[MASK]", "[gMASK]", "[sMASK]", "<s>", "</s>"),
    "chatglm3": ("[MASK]", "[gMASK]", "[sMASK]", *ROLES),
    "baichuan": (*BAICHUAN, "<s>", "</s>"),
    "internlm": ("<eoh>", "<eoa>", "<s>", "</s>"),
    "internlm2": (*TURNS, "[UNUSED_TOKEN_0]", "<s>", "</s>"),
}
