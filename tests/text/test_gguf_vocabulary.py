"""The tokenizer inside a GGUF file gives the ids that the folder's gives, for every family's kind of vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightllm_mp.text.pretokenizers import pre_tokenizer
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.family_samples import ROUND_TRIPS, folder_of, sentencepiece_folder, streamed, write
from tests.text.gguf_vocabulary import GLM_NAMES, write_vocabulary
from tests.text.tokenizer_samples import CORPUS

TEXTS = [
    *CORPUS,
    *ROUND_TRIPS,
    "FooBar HTTPServer isn't O'Brien's 3.14159 x²",
    "tab\tand\r\n\r\n  spaces   ",
    "a  b    c",
]
WHOLE = {"tokenizer_class": "PreTrainedTokenizerFast"}


def same_ids(mine, theirs, texts=TEXTS) -> None:
    for text in texts:
        for special in (True, False):
            ids = mine.encode(text, add_special_tokens=special).tolist()
            assert ids == theirs.encode(text, add_special_tokens=special).tolist(), text


def byte_level_folder(folder: Path, cut: pre_tokenizers.PreTokenizer, *, nfc: bool = False) -> Path:
    """A BPE trained on words that `cut` makes, with two special tokens and one that is not."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    if nfc:
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<|end|>", "<|user|>")])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    write(folder, tokenizer_config=WHOLE)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def isolated(*expressions: str) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def known_splits() -> dict[str, str]:
    """What transformers cuts by, by the same names."""
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    return mapping.GGUF_PRE_TOKENIZER_SPLITS


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "dbrx", "gpt-4o", "tekken", "deepseek-r1-qwen", "megrez"])
def test_words_are_those_of_transformers(tmp_path, pre):
    folder = byte_level_folder(tmp_path / "hf", isolated(known_splits()[pre]), nfc=pre == "qwen2")
    mine = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", folder, "qwen2", pre=pre, add_bos_token=False))
    theirs = load_tokenizer(folder)
    same_ids(mine, theirs, [*TEXTS, "<|user|>hi<|end|> <think>"])
    assert mine.eos_ids == (theirs.token_to_id("<|end|>"),)
    assert all(streamed(mine, mine.encode(text)) == text for text in TEXTS)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("deepseek-llm", "Hello world 123, 你好!\n\nx  ", "Hello| world| |1|2|3|,| |你好|!|\n|\n|x|  "),
        ("deepseek-llm", "Ünïcode日本語 (a+b)", "Ü|n|ï|code|日本語| (|a|+|b|)"),
        ("deepseek-coder", "def f(x):\n  return 42", "def| f|(|x|):|\n| | return| |4|2"),
        ("deepseek-v3", "Hello 12345 (the x=1;", "Hello| |123|45| (|the| x|=|1|;"),
        ("deepseek-v3", "x\n(the end)", "x|\n|(the| end|)"),
        ("deepseek-v3", "漢字かな 😀\n", "漢字かな| 😀\n"),
        ("starcoder", "x12 = y", "x|1|2| =| y"),
        ("phi-2", "x12 = y", "x|12| =| y"),
        ("bloom", "Hello, world", "Hello|,| world"),
        ("glm4", "Hello 12345", "Hello| |123|45"),
        ("gpt-4o", "FooBar's x", "Foo|Bar's| x"),
        ("tekken", "FooBar's 12", "Foo|Bar|'s| |1|2"),
        ("minimax-m2", "FooBar's 1234/\n", "Foo|Bar's| |123|4|/\n"),
        ("kimi-k2", "FooBar's 1234/\n", "Foo|Bar's| |123|4|/\n"),
        ("kimi-k2", "中文English混合 Ünï-x", "中文|English|混合| Ünï|-x"),
    ],
)
def test_words(pre, text, words):
    """By hand, from the expressions. Each cuts again what the ones before left, so the first of DeepSeek's cuts Latin
    words at their accents."""
    cut = pre_tokenizer(pre).pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in cut] == words.split("|")


@pytest.mark.parametrize(
    ("family", "architecture", "keys"),
    [
        ("internlm", "llama", {}),
        ("internlm2", "internlm2", {"add_space_prefix": False}),
        ("baichuan", "baichuan", {"add_bos_token": False}),
        ("chatglm3", "chatglm", {"add_bos_token": False}),
    ],
)
def test_sentencepiece_families(tmp_path, family, architecture, keys):
    folder, _ = folder_of(family, tmp_path / "hf")
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    mine = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", folder, architecture, **ends, **keys))
    theirs = load_tokenizer(folder)
    same_ids(mine, theirs, ROUND_TRIPS)
    for text in ROUND_TRIPS:
        assert streamed(mine, mine.encode(text, add_special_tokens=False)) == text


def test_chatglm3_names_no_token_by_a_syllable(tmp_path):
    folder, _ = folder_of("chatglm3", tmp_path / "hf")
    mine = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", folder, "chatglm", add_bos_token=False))
    theirs = load_tokenizer(folder)
    assert mine.chat_template == theirs.chat_template
    ids = [mine.token_to_id(name) for name in ("[gMASK]", "<|sop|>")]
    assert ids == [theirs.token_to_id(name) for name in ("[gMASK]", "<|sop|>")]
    assert mine.encode("a philosophy").tolist()[:2] == ids
    assert not set(mine.encode("sop eop", add_special_tokens=False).tolist()) & {*ids, *mine.special_ids}
    assert len(GLM_NAMES) == 9


GEMMA = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": True,
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "3": {"content": "<end_of_turn>", "special": True},
        "4": {"content": "▁▁", "special": False},
        "5": {"content": "\n\n", "special": False},
    },
}


def test_gemma(tmp_path):
    """No space in front of a text; runs of spaces are user-defined tokens, which the file spells with spaces."""
    symbols = ("<end_of_turn>", "▁▁", "\n\n")
    folder, library = sentencepiece_folder(tmp_path / "hf", *symbols, prefix=False)
    ids = {name: library.PieceToId(name) for name in symbols}
    assert list(ids.values()) == [3, 4, 5]
    (folder / "tokenizer_config.json").write_text(json.dumps(GEMMA))
    keys = {"bos_token_id": 1, "eos_token_id": 2, "add_space_prefix": False}
    mine = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", folder, "gemma2", **keys))
    for text in [*ROUND_TRIPS, "a  b    c", "one\n\ntwo\n\n\nthree"]:
        assert mine.encode(text).tolist() == [1, *library.encode(text)], text
        assert streamed(mine, mine.encode(text, add_special_tokens=False)) == text
    assert mine.eos_ids == (2, 3)


def test_phi3_tokens_take_the_space_behind_them(tmp_path):
    decoder = {"3": {"content": "<|user|>", "special": True}, "4": {"content": "<|end|>", "special": True}}
    folder, library = sentencepiece_folder(tmp_path / "hf", "<|user|>", "<|end|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    keys = {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False}
    mine = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", folder, "phi3", **keys))
    assert mine.encode("<|user|>\n hello <|end|>\n").tolist() == [3, *library.encode("hello "), 4]
    other = load_tokenizer(write_vocabulary(tmp_path / "n.gguf", folder, "llama", **keys))
    assert other.encode("<|user|>\nhello").tolist() == [3, *library.encode("\nhello")]
    assert mine.eos_ids == (2, 4)


def test_a_turn_of_gpt_oss_ends_with_none_of_its_messages(tmp_path):
    """Most files have the token that ends the last message alone; `<|end|>` ends any other."""
    folder = byte_level_folder(tmp_path / "hf", isolated(known_splits()["gpt-4o"]))
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|return|>", "<|call|>")])
    backend.save(str(folder / "tokenizer.json"))
    keys = {"eos_token_id": backend.token_to_id("<|return|>"), "add_bos_token": False}
    path = write_vocabulary(tmp_path / "m.gguf", folder, "gpt-oss", pre="gpt-4o", **keys)
    assert load_tokenizer(path).eos_ids == tuple(map(backend.token_to_id, ("<|return|>", "<|call|>")))
    write(folder, config={"model_type": "gpt_oss", "eos_token_id": keys["eos_token_id"]}, tokenizer_config=WHOLE)
    assert load_tokenizer(folder).eos_ids == load_tokenizer(path).eos_ids
