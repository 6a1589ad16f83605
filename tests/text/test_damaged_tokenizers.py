"""Damaged tokenizer files are one clear error, whatever is wrong with them, and so is a mode whose file is absent."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.errors import ConfigError, ModelError, NoTokenizer
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.family_samples import (
    qwen_folder,
    qwen_ranks,
    qwen_table,
    sentencepiece_folder,
    sentencepiece_model,
    write,
)
from tests.text.tokenizer_samples import byte_level_backend


def refusal(folder: Path, kind: type[Exception] = ModelError, **options: Any) -> str:
    """The message of the error, which is one line, names no path, and is what a user sees."""
    with pytest.raises(kind) as caught:
        load_tokenizer(folder, **options)
    message = caught.value.message
    assert "\n" not in message
    assert str(folder.parent) not in message
    return message


def test_every_truncation_of_a_sentencepiece_model(tmp_path: Path) -> None:
    """Also where a message ends: what is left would be a valid model of another kind."""
    data = sentencepiece_model("<x>")
    rng = random.Random(2)
    # Behind the normalizer there may be parts that nobody needs: the last bytes are left alone.
    for size in {0, 1, 2, len(data) // 2, data.index(b"<s>", 10) - 4, *rng.sample(range(len(data) - 60), 80)}:
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        assert refusal(tmp_path).startswith("tokenizer.model is not a SentencePiece model: ")


def test_flipped_bytes_of_a_sentencepiece_model(tmp_path: Path) -> None:
    """A tokenizer or a ModelError, nothing else: no panic of the library, no other exception."""
    data = bytearray(sentencepiece_model("<x>"))
    rng = random.Random(4)
    refused = 0
    for _ in range(120):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            load_tokenizer(tmp_path).encode("the other 你好")
        except ModelError:
            refused += 1
    assert refused > 60


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"!!! 600", "line 3: not a base64 token"),
        (b"dGhl", "line 3: not a base64 token"),
        (b"dGhl 600 1", "line 3: not a base64 token"),
        (b"dGhl x", "line 3: not a base64 token"),
        (b"dGhl -1", "line 3: not a base64 token"),
        (b"dGhl 1.5", "line 3: not a base64 token"),
        (b"dGhl " + b"9" * 5000, "line 3: not a base64 token"),
        (b"\xff\xfe 600", "line 3: not a base64 token"),
        (b"A" * 4096 + b" 600", "line 3: not a base64 token"),
        (b"dGhlbmFuZHRoZW4= 0", "line 3: duplicate rank 0"),
        (b"dGhlbmFuZHRoZW4= 70000", "are not 0, 1, 2"),
        (b"IQ== LAST", "a duplicate token"),
    ],
)
def test_a_bad_line_of_a_tiktoken_table(tmp_path: Path, line: bytes, message: str) -> None:
    lines = qwen_table(qwen_ranks()).splitlines()
    lines.insert(2, line.replace(b"LAST", b"%d" % len(lines)))
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(lines))
    assert message in refusal(tmp_path)


def test_a_table_without_a_byte(tmp_path: Path) -> None:
    tokens = [token for token in qwen_ranks() if token != b"\x00"]
    (tmp_path / "qwen.tiktoken").write_bytes(qwen_table(tokens))
    assert "no token for the byte 0x00" in refusal(tmp_path)
    (tmp_path / "qwen.tiktoken").write_bytes(b"")
    assert "no token for the byte 0x00" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken", "tokenizer.json"])
def test_a_huge_file_is_not_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    assert refusal(tmp_path).startswith(f"{name} is larger than")


@pytest.mark.parametrize("declared", [[1], {"a": {"content": "x"}}, "x", {"0": "not an object"}])
def test_odd_tables_of_added_tokens(tmp_path: Path, declared: Any) -> None:
    folder, _ = sentencepiece_folder(tmp_path, tokenizer_config={"added_tokens_decoder": declared})
    if declared == {"0": "not an object"}:
        assert load_tokenizer(folder).vocab_size > 300
    else:
        assert "added tokens" in refusal(folder)


def test_modes_of_a_folder_with_both(tmp_path: Path) -> None:
    folder, _ = sentencepiece_folder(tmp_path)
    byte_level_backend().save(str(folder / "tokenizer.json"))
    slow, fast = load_tokenizer(folder, mode="slow"), load_tokenizer(folder, mode="fast")
    assert slow.token_to_id("<|begin|>") is None
    assert fast.token_to_id("<|begin|>") == 0
    assert load_tokenizer(folder).token_to_id("<|begin|>") == 0
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(folder).vocab_size == slow.vocab_size


def test_a_mode_whose_file_is_absent(tmp_path: Path) -> None:
    qwen = qwen_folder(tmp_path / "qwen")
    assert refusal(qwen, ConfigError, mode="fast") == "tokenizer mode fast: qwen has no tokenizer.json"
    assert load_tokenizer(qwen, mode="slow").vocab_size == load_tokenizer(qwen).vocab_size
    only_json = write(tmp_path / "json")
    byte_level_backend().save(str(only_json / "tokenizer.json"))
    assert "has only tokenizer.json" in refusal(only_json, ConfigError, mode="slow")
    empty = write(tmp_path / "empty")
    for mode in ("auto", "fast", "slow"):
        refusal(empty, NoTokenizer, mode=mode)


@pytest.mark.parametrize(
    "normalizer",
    [
        '{"type": "Precompiled", "precompiled_charsmap": "MAP"}',
        '{"type": "Sequence", "normalizers": [{"type": "NFC"},'
        ' {"type": "Precompiled", "precompiled_charsmap": "MAP"}]}',
        '{"type": "Precompiled", "precompiled\\u005fcharsmap": "MAP"}',
    ],
)
@pytest.mark.parametrize("again", ["", ', "normalizer": null'])
def test_a_character_map_that_is_shorter_than_it_says(tmp_path: Path, normalizer: str, again: str) -> None:
    """The library would allocate what the map says, and end the process if it cannot. So a process of its own reads
    the file, in little memory."""
    charsmap = base64.b64encode(b"\xf0\xff\xff\xff" + bytes(64)).decode()
    vocabulary = json.dumps({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})
    said = normalizer.replace("MAP", charsmap)
    (tmp_path / "tokenizer.json").write_text(f'{{"normalizer": {said}{again}, "model": {vocabulary}}}')
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from lightllm_mp.errors import ModelError
from lightllm_mp.text.tokenizer import load_tokenizer
from pathlib import Path
try:
    load_tokenizer(Path({str(tmp_path)!r}))
    print("loaded")
except ModelError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    # Of two normalizers the last one counts, and only that one is read.
    expected = "loaded" if again else "tokenizer.json cannot be read: its character map is truncated"
    assert done.stdout.strip() == expected
