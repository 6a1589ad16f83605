"""The default model's vocabulary, and walks through grammars."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from lightllm_mp.guides.compiler import GuideCompiler
from lightllm_mp.guides.matcher import GuideMatcher, MaskWriter
from lightllm_mp.guides.vocabulary import GuideVocabulary
from lightllm_mp.messages import Guide
from lightllm_mp.text.tokenizer import Tokenizer, load_tokenizer
from tests.models.default_model import default_model

SPARE = 64
"""Ids that the engine has and the tokenizer does not."""


@cache
def tokenizer() -> Tokenizer:
    path = default_model()
    if path is None:
        pytest.skip("the default model is not installed")
    return load_tokenizer(path)


@cache
def compiler() -> GuideCompiler:
    text = tokenizer()
    return GuideCompiler(GuideVocabulary(text, text.vocab_size + SPARE, (0, *text.eos_ids)))


@cache
def writer() -> MaskWriter:
    return MaskWriter(compiler().vocabulary, 2)


def matcher(kind: str, source: str = "", after: str = "", **how: bool) -> GuideMatcher:
    guide = Guide(kind, source, after)
    return GuideMatcher(compiler().compile(guide).deep_copy(), compiler().vocabulary, after=after, **how)


def allowed(one: GuideMatcher) -> list[int]:
    bits = writer().masks([one])[0]
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()


def takes(one: GuideMatcher, text: str) -> bool:
    """Whether each next token of the text is allowed; takes them."""
    for token in tokenizer().encode(text, add_special_tokens=False).tolist():
        if token not in allowed(one):
            return False
        one.take(token)
    return True


def may_end(one: GuideMatcher) -> bool:
    return tokenizer().eos_ids[0] in allowed(one)


def accepts(kind: str, source: str, text: str) -> bool:
    """Whether the grammar takes all of the text and may end there."""
    one = matcher(kind, source)
    return takes(one, text) and may_end(one)


def walk(one: GuideMatcher, seed: int, longest: int = 200) -> str | None:
    """A random answer, or None if it has not ended after `longest` tokens."""
    random, ids = np.random.default_rng(seed), list[int]()
    ends = {0, *tokenizer().eos_ids}
    while len(ids) < longest:
        token = int(random.choice(allowed(one)))
        if token in ends:
            return tokenizer().decode(ids)
        ids.append(token)
        one.take(token)
    return None
