"""How a byte-level BPE cuts text into words before merging, by the name that GGUF stores in tokenizer.ggml.pre."""

from __future__ import annotations

from tokenizers import Regex, normalizers, pre_tokenizers

from lightllm_mp.errors import ModelError

# The expressions are those of the models' own tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

_GPT2_NAMES = ("default", "gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe", "exaone4")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe")
_QWEN2_NAMES = ("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez")
_BLOOM_NAMES = ("bloom", "gpt3-finnish")


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer called `name`. Raises ModelError for one that is not known."""
    if name in _GPT2_NAMES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGIT_NAMES:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    for names, expression in ((_LLAMA3_NAMES, _LLAMA3), (_QWEN2_NAMES, _QWEN2), (_BLOOM_NAMES, _BLOOM)):
        if name in names:
            return _split(expression)
    known = ", ".join(_GPT2_NAMES + _DIGIT_NAMES + _LLAMA3_NAMES + _QWEN2_NAMES + _BLOOM_NAMES)
    raise ModelError(f"pre-tokenizer {name[:64]!r} is not supported; supported are {known}")


def normalizer(name: str) -> normalizers.Normalizer | None:
    """The normalizer that belongs to the pre-tokenizer called `name`."""
    return normalizers.NFC() if name == "qwen2" else None


def ignores_merges(name: str) -> bool:
    """True where a word that is itself a token is taken whole, whatever its merges say."""
    return name in _LLAMA3_NAMES


def _split(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
