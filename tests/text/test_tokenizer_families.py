"""Tokenizers of the families that bring code instead of tokenizer.json, against tiktoken and SentencePiece."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.family_samples import (
    FAMILIES,
    GLM,
    KIMI_NAMED,
    QWEN_TOKENS,
    ROLES,
    ROUND_TRIPS,
    SPECIAL,
    TURNS,
    cut_encode,
    folder_of,
    kimi_encode,
    kimi_folder,
    qwen_encode,
    qwen_folder,
    qwen_ranks,
    qwen_table,
    sentencepiece_folder,
    sentencepiece_model,
    streamed,
    write,
)
from tests.text.tokenizer_samples import byte_level_backend


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips_and_streams(tmp_path: Path, family: str) -> None:
    """Every text comes back, whole and token by token, with special tokens at its ends and inside it."""
    folder, _ = folder_of(family, tmp_path / family)
    tokenizer = load_tokenizer(folder)
    rng = random.Random(3)
    special = SPECIAL[family]
    texts = [*ROUND_TRIPS, "".join(special), *special]
    texts += ["".join(rng.choices([*ROUND_TRIPS, *special], k=5)) for _ in range(30)]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = text if tokenizer.rule.strip == 0 else cut_text(tokenizer, text, special)
        assert tokenizer.decode(ids, skip_special_tokens=False) == expected
        assert streamed(tokenizer, ids, skip_special_tokens=False) == expected
    for name in special:
        assert tokenizer.encode(name, add_special_tokens=False).tolist()[-1] == tokenizer.token_to_id(name)


def cut_text(tokenizer: Tokenizer, text: str, special: tuple[str, ...]) -> str:
    """`text` as it comes back where a space is put before every stretch between added tokens."""
    cuts = [name for name in special if tokenizer.token_to_id(name) in tokenizer.added]
    for name in cuts:
        text = text.replace(name, f"\0{name}\0")
    parts = [part for part in text.split("\0") if part]
    spaced = "".join(part if part in cuts else f" {part}" for part in parts)
    return spaced.removeprefix(" ")


def varied(special: tuple[str, ...], count: int = 150) -> list[str]:
    rng = random.Random(8)
    words = [*"ab 01\t\n", "  ", "the", "other", "你好", "世", "é", "👩\u200d👧", "=", "<", "don't", *special]
    texts = ["".join(rng.choices(words, k=rng.randint(1, 14))) for _ in range(count)]
    return ROUND_TRIPS + texts + [char * 37 for char in " =a\n"]


@pytest.mark.parametrize("family", ["qwen", "qwen_vl"])
def test_qwen_encodes_as_tiktoken(tmp_path: Path, family: str) -> None:
    folder, _ = folder_of(family, tmp_path / family)
    tokenizer = load_tokenizer(folder)
    wrong = [
        text
        for text in varied(SPECIAL[family][:3] + SPECIAL[family][-9:])
        if tokenizer.encode(text).tolist() != qwen_encode(text, special=SPECIAL[family])
    ]
    assert wrong == []


def test_kimi_encodes_as_tiktoken(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(kimi_folder(tmp_path / "kimi"))
    texts = [*varied(KIMI_NAMED), "FooBar's 1234 汉字abc中文English混合 北京市 Pascal", "éÉa\u0301 /\n//\r\n x/"]
    assert [text for text in texts if tokenizer.encode(text).tolist() != kimi_encode(text)] == []
    assert all(streamed(tokenizer, tokenizer.encode(text), skip_special_tokens=False) == text for text in texts)
    assert tokenizer.eos_ids == (tokenizer.token_to_id("[EOS]"),)
    assert tokenizer.vocab_size == len(qwen_ranks()) + 256
    assert tokenizer.is_special(tokenizer.token_to_id("<|im_end|>"))
    assert not tokenizer.is_special(tokenizer.token_to_id("<|tool_calls_section_begin|>"))
    assert tokenizer.token_to_id(f"<|reserved_token_{len(qwen_ranks()) + 5}|>") == len(qwen_ranks()) + 5


def test_a_token_of_kimi_that_stands_in_the_table_is_refused(tmp_path: Path) -> None:
    folder = kimi_folder(tmp_path / "kimi")
    (folder / "tiktoken.model").write_bytes(qwen_table((*qwen_ranks(), b"[EOS]")))
    with pytest.raises(ModelError, match=r"'\[EOS\]'"):
        load_tokenizer(folder)


def test_qwen_ids(tmp_path: Path) -> None:
    tokenizer, count = load_tokenizer(qwen_folder(tmp_path / "qwen")), len(qwen_ranks())
    assert [tokenizer.token_to_id(name) for name in QWEN_TOKENS] == list(range(count, count + 208))
    assert tokenizer.eos_ids == (count, count + 2, count + 1)
    assert tokenizer.vocab_size == count + 208
    assert tokenizer.special_ids == frozenset(range(count, count + 208))
    assert tokenizer.token_to_id("<img>") is None


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "internlm2"])
def test_special_tokens_cut_and_sentencepiece_does_the_rest(tmp_path: Path, family: str) -> None:
    folder, processor = folder_of(family, tmp_path / family)
    tokenizer = load_tokenizer(folder)
    names = {name: tokenizer.token_to_id(name) for name in SPECIAL[family] if name != "[UNUSED_TOKEN_0]"}
    for text in varied(SPECIAL[family]):
        assert tokenizer.encode(text, False).tolist() == cut_encode(processor, text, names), text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
def test_user_defined_symbols_are_part_of_the_text(tmp_path: Path, kind: str, prefix: bool) -> None:
    """Symbols that begin alike, that hold spaces, and of one character; and the spelling of a byte."""
    sentencepiece = pytest.importorskip("sentencepiece")
    symbols = ("<eoh>", "<eoa>", "<eo", "0", "\t", "]^-\\") + (("▁▁",) if kind == "bpe" else ())
    model = sentencepiece_model(*symbols, kind=kind, prefix=prefix)
    (tmp_path / "tokenizer.model").write_bytes(model)
    processor, tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model), load_tokenizer(tmp_path)
    for text in varied((*symbols, "<0x41>") if kind == "bpe" else symbols):
        ids = tokenizer.encode(text, False).tolist()
        assert ids == processor.encode(text), text
        assert tokenizer.decode(ids) == processor.decode(ids)
    assert not any(tokenizer.is_special(tokenizer.token_to_id(symbol)) for symbol in symbols)


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_glm_tokens_follow_the_vocabulary(tmp_path: Path, family: str) -> None:
    folder, processor = folder_of(family, tmp_path / family)
    tokenizer, first = load_tokenizer(folder), processor.vocab_size()
    names = GLM + (ROLES if family == "chatglm3" else [])
    assert tokenizer.vocab_size == first + len(names)
    assert [tokenizer.decode([first + i], skip_special_tokens=False) for i in range(len(names))] == names
    assert tokenizer.decode(range(first, first + len(names))) == ""
    assert tokenizer.encode("the sop").tolist() == [first + 1, first + 3, *processor.encode("the sop")]
    ends = (first + 6, first + 8) if family == "chatglm3" else ()
    assert tokenizer.eos_ids == (2, *ends)


def test_glm3_is_told_by_its_files(tmp_path: Path) -> None:
    """Later revisions declare their tokens, under the ids that they have anyway; earlier ones have only their code."""
    folder, processor = sentencepiece_folder(tmp_path / "a", config={"model_type": "chatglm"})
    assert load_tokenizer(folder).token_to_id("<|user|>") is None
    (folder / "tokenization_chatglm.py").write_text('raise SystemExit("<|observation|>")')
    assert load_tokenizer(folder).token_to_id("<|user|>") == processor.vocab_size() + 6
    (folder / "tokenization_chatglm.py").unlink()
    first = processor.vocab_size()
    declared = {str(first + i): {"content": name, "special": False} for i, name in enumerate([*GLM, *ROLES])}
    template = "{{ '[gMASK]sop<|user|>' }}"
    write(folder, tokenizer_config={"added_tokens_decoder": declared, "chat_template": template})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(tokenizer.chat_template[4:-4], False).tolist() == [first + 1, first + 3, first + 6]


def test_a_converted_glm_keeps_its_own_names(tmp_path: Path) -> None:
    """A tokenizer.json has its own special tokens, sop among them, and says itself what begins a text."""
    backend = byte_level_backend()
    size = backend.get_vocab_size()
    backend.add_special_tokens([*GLM, *ROLES])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(write(tmp_path, config={"model_type": "chatglm"}))
    assert tokenizer.encode("[gMASK]sop<|user|>").tolist() == [size + 1, size + 3, size + 6]
    assert tokenizer.chat_template.startswith("{{ '[gMASK]sop' }}")
    assert tokenizer.vocab_size == size + 9


def test_baichuan_roles_cut_the_text(tmp_path: Path) -> None:
    folder, processor = folder_of("baichuan", tmp_path / "baichuan")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("<reserved_106>the other").tolist() == [3, *processor.encode("the other")]
    assert tokenizer.eos_ids == (2,)


def test_internlm_ends(tmp_path: Path) -> None:
    folder, processor = folder_of("internlm", tmp_path / "internlm")
    tokenizer = load_tokenizer(folder)
    text = "<|User|>:the other<eoh>\n<|Bot|>:"
    assert tokenizer.encode(text).tolist() == [1, *processor.encode(text)]
    assert tokenizer.eos_ids == (2, processor.piece_to_id("<eoa>"))


def test_internlm2_names_unused_tokens_anew(tmp_path: Path) -> None:
    folder, processor = folder_of("internlm2", tmp_path / "internlm2")
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.token_to_id(name) for name in TURNS] == [4, 3]
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (processor.vocab_size(), (2, 3))
    write(folder, tokenizer_config={"tokenizer_class": "InternLM2Tokenizer"})
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.token_to_id(name) for name in TURNS.values()] == [4, 3]
    assert tokenizer.eos_ids == (2, 3)


def test_a_plain_llama_folder(tmp_path: Path) -> None:
    """tokenizer.model with added tokens and a map of special tokens, as its own code never was needed for."""
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<|turn|>"]}
    config = {"tokenizer_class": "LlamaTokenizer", "add_eos_token": False}
    folder, processor = sentencepiece_folder(tmp_path, tokenizer_config=config, special_tokens_map=special)
    size = processor.vocab_size()
    write(folder, added_tokens={"<|turn|>": size, "<think>": size + 1})
    tokenizer = load_tokenizer(folder)
    names = {"<|turn|>": size, "<think>": size + 1, "<s>": 1, "</s>": 2}
    for text in varied(tuple(names)):
        assert tokenizer.encode(text).tolist() == [1, *cut_encode(processor, text, names)], text
    assert tokenizer.special_ids == {0, 1, 2, size}


def test_two_tokens_of_one_name_are_refused(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {"5": {"content": "</s>", "special": True}}}
    folder, _ = sentencepiece_folder(tmp_path, tokenizer_config=config)
    with pytest.raises(ModelError, match="duplicate"):
        load_tokenizer(folder)
