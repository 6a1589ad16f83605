"""tokenizer.model files, against the SentencePiece library where it is installed."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.tokenizer_samples import CORPUS

TEXTS = [
    "the quick brown fox",
    "  two  spaces and a tail ",
    "你好，世界 😀 Привет",
    "don't\nthink\t12345",
    "",
    "x" * 50,
    "zz▁q",
]


def train(folder: Path, **options: Any) -> Any:
    """A model trained by the library, saved as tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n")] * 4),
        model_writer=model,
        vocab_size=480,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
        hard_vocab_limit=False,
        user_defined_symbols=["<turn>"],
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def varied_texts() -> list[str]:
    rng = random.Random(11)
    words = " ".join(CORPUS).split()
    return TEXTS + [" ".join(rng.choices(words, k=8)) for _ in range(40)]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("prefix", [True, False])
def test_same_ids_as_the_library(tmp_path: Path, kind: str, rule: str, prefix: bool) -> None:
    spaces = rule == "nmt_nfkc"
    processor = train(
        tmp_path,
        model_type=kind,
        normalization_rule_name=rule,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=spaces,
    )
    tokenizer = load_tokenizer(tmp_path)
    wrong = []
    for text in varied_texts():
        expected = processor.encode(text)
        ids = tokenizer.encode(text, add_special_tokens=False).tolist()
        if ids != expected:
            wrong.append((text, expected, ids))
        assert tokenizer.decode(expected) == processor.decode(expected)
    assert wrong == []


def test_special_tokens_and_flags(tmp_path: Path) -> None:
    processor = train(tmp_path, model_type="bpe", normalization_rule_name="identity")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (processor.bos_id(), (processor.eos_id(),))
    assert tokenizer.encode("the").tolist() == [processor.bos_id(), *processor.encode("the")]
    assert tokenizer.special_ids == {0, 1, 2}
    turn = processor.piece_to_id("<turn>")
    assert tokenizer.encode("<turn>", add_special_tokens=False).tolist()[-1] == turn
    assert not tokenizer.is_special(turn)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')
    assert load_tokenizer(tmp_path).encode("the").tolist() == [*processor.encode("the"), processor.eos_id()]


def test_mode_slow_prefers_the_sentencepiece_model(tmp_path: Path) -> None:
    train(tmp_path, model_type="bpe", normalization_rule_name="identity")
    (tmp_path / "tokenizer.json").write_text("damaged")
    assert load_tokenizer(tmp_path, mode="slow").vocab_size > 300
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, mode="auto")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\xff" * 20,
        b"\x0f\x00",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x0a\x05\x0a\x03abc" + b"\x0a\x02\x12\x00" + struct.pack("<f", 1),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(ModelError):
        load_tokenizer(tmp_path)
