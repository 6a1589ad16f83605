"""tekken.json, against tiktoken where it is installed, and damaged."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.text.pretokenizers import TEKKEN
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.family_samples import qwen_ranks
from tests.text.tokenizer_samples import CORPUS

SPECIALS = 20
TEXTS = [*CORPUS[:6], "HelloWorld 1234 don't", "你好，世界 😀 Привет", "  two\n\n lines\t"]


def table(**config: Any) -> dict[str, Any]:
    """A file of Mistral's form: more words than the vocabulary has room for, and no list of special tokens."""
    words = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for rank, word in enumerate(qwen_ranks())
    ]
    sizes = {"default_vocab_size": SPECIALS + len(words) - 10, "default_num_special_tokens": SPECIALS}
    return {"config": {"pattern": TEKKEN, "version": "v3", **sizes, **config}, "vocab": words, "multimodal": {}}


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "tekken.json").write_text(json.dumps(content))
    (folder / "config.json").write_text('{"model_type": "mistral3"}')
    return folder


def test_same_ids_as_tiktoken(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {word: rank for rank, word in enumerate(qwen_ranks()[:-10])}
    theirs = tiktoken.Encoding("tekken", pat_str=TEKKEN, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(written(tmp_path, table()))
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        assert ids == [1, *(rank + SPECIALS for rank in theirs.encode(text))]
        assert ours.decode(ids) == text


def test_special_tokens(tmp_path: Path) -> None:
    """Those of the file by their ranks, else those of the first release; ids between have a name of their own."""
    old = load_tokenizer(written(tmp_path, table()))
    assert [old.token_to_id(name) for name in ("[IMG]", "[IMG_BREAK]", "[IMG_END]")] == [10, 12, 13]
    assert (old.bos_id, old.eos_ids) == (1, (2,))
    assert old.encode("[IMG]a", False)[0] == 10
    named = [{"rank": 1, "token_str": "<s>", "is_control": True}, {"rank": 2, "token_str": "</s>"}]
    new = load_tokenizer(written(tmp_path, {**table(), "special_tokens": [*named, {"rank": 17, "token_str": "[X]"}]}))
    assert (new.token_to_id("[X]"), new.token_to_id("<SPECIAL_10>"), new.bos_id) == (17, 10, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(pattern=r"\w+"), "its pattern of words is not supported"),
        (table(default_vocab_size=5000), "its ranks are not 4980 different words"),
        ({**table(), "special_tokens": [{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]}, "cannot have"),
        ({**table(), "special_tokens": [{"rank": 0, "token_str": "a"}]}, "'a' is a special token and a word"),
        ({"config": {}}, "tekken.json cannot be read"),
    ],
)
def test_damaged(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_tokenizer(written(tmp_path, content))
