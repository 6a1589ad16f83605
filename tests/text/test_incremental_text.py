"""Streamed text is the whole text, for every kind of decoder."""

from __future__ import annotations

import random
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.text.detokenizer import IncrementalText
from lightllm_mp.text.tokenizer import Tokenizer
from tests.text.tokenizer_samples import BACKENDS, sample

ALL = [*BACKENDS, "default"]
TEXTS = [
    "héllo wörld",
    "emoji 😀👩\u200d👩\u200d👧🇩🇪!",
    "你好，世界 こんにちは",
    "a\x00b",
    "  leading and   inner",
    "",
    " ",
    "don't\n\n x1234",
]


def stream(tokenizer: Tokenizer, ids: list[int], **options: object) -> str:
    text = IncrementalText(tokenizer, **options)
    return "".join(text.push(id_) for id_ in ids) + text.finish()


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_ids_give_the_whole_text(name: str, data: st.DataObject) -> None:
    tokenizer = sample(name)
    ids = data.draw(st.lists(st.integers(-2, min(tokenizer.vocab_size, 600) + 2), max_size=30))
    for skip in (True, False):
        for spaces in (True, False):
            options = {"skip_special_tokens": skip, "spaces_between_special_tokens": spaces}
            assert stream(tokenizer, ids, **options) == tokenizer.decode(ids, **options)


@pytest.mark.parametrize("name", ["byte_level", "default", "metaspace", "word_piece", "no_decoder"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whole_text_is_that_of_the_library(name: str, data: st.DataObject) -> None:
    tokenizer = sample(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == tokenizer.backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "odd_decoder", "default"])
@pytest.mark.parametrize("text", TEXTS)
def test_real_text_comes_back_without_replacement_characters(name: str, text: str) -> None:
    tokenizer = sample(name)
    ids = tokenizer.encode(text, add_special_tokens=False).tolist()
    assert stream(tokenizer, ids) == text
    assert tokenizer.backend.decode(ids) == text


def test_a_wrong_byte_costs_only_itself() -> None:
    tokenizer = sample("sentencepiece")
    ids = [3 + byte for byte in "é".encode()] + [3 + 0xFF] + [3 + byte for byte in "😀".encode()]
    text = IncrementalText(tokenizer)
    assert [text.push(id_) for id_ in ids] == ["", "é", "\ufffd", "", "", "", "😀"]


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "default"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_output_goes_on_where_the_prompt_ends(name: str, data: st.DataObject) -> None:
    """Cut anywhere, even inside a character: prompt and answer together are the text, nothing twice, nothing lost."""
    tokenizer = sample(name)
    text = data.draw(st.text(alphabet="aé你😀 hello", min_size=1, max_size=12))
    ids = tokenizer.encode(text, add_special_tokens=False).tolist()
    cut = data.draw(st.integers(0, len(ids)))
    shown_before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
    assert shown_before + stream(tokenizer, ids[cut:], prompt_tail=ids[:cut][-8:]) == text


def test_an_unfinished_character_of_the_prompt_is_not_shown_as_output() -> None:
    tokenizer = sample("byte_level")
    smile = [tokenizer.token_to_id(char) for char in "ðŁĺĢ"]  # the four bytes of an emoji
    a = tokenizer.token_to_id("a")
    assert stream(tokenizer, [a], prompt_tail=smile[:2]) == "a"
    assert stream(tokenizer, [], prompt_tail=smile[:2]) == ""
    assert stream(tokenizer, [*smile[2:], a], prompt_tail=smile[:2]) == "😀a"
    assert stream(tokenizer, [smile[0], a], prompt_tail=smile[:2]) == "\ufffda"


def test_the_leading_space_depends_on_the_prompt() -> None:
    tokenizer = sample("sentencepiece")
    hello = tokenizer.token_to_id("▁hello")
    assert stream(tokenizer, [hello]) == "hello"
    assert stream(tokenizer, [hello], prompt_tail=[1]) == "hello"
    assert stream(tokenizer, [hello], prompt_tail=[1, hello]) == " hello"


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_broken_characters_around_the_end_of_the_prompt(name: str, data: st.DataObject) -> None:
    """Prompt and answer are cut anywhere in bytes that may be no UTF-8 at all."""
    tokenizer = sample(name)
    of_byte = {tokenizer.token_bytes(id_): id_ for id_ in range(tokenizer.vocab_size - 1, -1, -1)}
    pieces = st.sampled_from([b"a", b"\xed", b"\xa0", b"\x80", b"\xf0", b"\x9f", b"\x98", b"\xff", b"\xe2", b"\xc3"])
    raw = data.draw(st.lists(pieces, max_size=8))
    cut = data.draw(st.integers(0, len(raw)))
    ids = [of_byte[piece] for piece in raw]
    whole, prompt = tokenizer.decode(ids), tokenizer.decode(ids[:cut])
    shown = stream(tokenizer, ids[cut:], prompt_tail=ids[:cut])
    # Where the answer completes the prompt's last character, that is all by which the two texts differ.
    assert shown == whole[len(prompt) - (not whole.startswith(prompt)) :]


def test_an_unfinished_character_at_the_end_is_flushed() -> None:
    tokenizer = sample("byte_level")
    ids = [tokenizer.token_to_id(char) for char in "aðŁ"]
    text = IncrementalText(tokenizer)
    assert [text.push(id_) for id_ in ids] == ["a", "", ""]
    assert text.finish() == "\ufffd"
    assert text.finish() == ""


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "word_piece"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_resumed_stream_goes_on_as_if_nothing_had_happened(name: str, data: st.DataObject) -> None:
    tokenizer = sample(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24))
    cut = data.draw(st.integers(0, len(ids)))
    stop = data.draw(st.lists(st.text(alphabet="theplaying. ", min_size=1, max_size=4), max_size=3))
    whole, resumed = IncrementalText(tokenizer, stop=stop), IncrementalText(tokenizer, stop=stop)
    for id_ in ids[:cut]:
        whole.push(id_)
    resumed.replay(np.array(ids[:cut], dtype=np.int32))
    assert resumed.stopped == whole.stopped
    assert [resumed.push(id_) for id_ in ids[cut:]] == [whole.push(id_) for id_ in ids[cut:]]
    assert resumed.finish() == whole.finish()


def test_special_tokens_between_other_special_tokens() -> None:
    tokenizer = sample("no_decoder")
    ids = [0, 3, 4, 1, 2, 3]
    assert stream(tokenizer, ids, skip_special_tokens=False) == "a <x> <y> b c <x>"
    options = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    assert stream(tokenizer, ids, **options) == "a<x><y>b c<x>"


@pytest.mark.parametrize("name", ["byte_level", "word_piece"])
@pytest.mark.parametrize("stop", [(), ("never seen", "neither")])
def test_the_cost_of_a_token_does_not_grow(name: str, stop: tuple[str, ...]) -> None:
    """Quadratic work would make the last quarter about seven times as slow as the first."""
    tokenizer = sample(name)
    rng = random.Random(5)
    ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20_000)]
    text = IncrementalText(tokenizer, stop=stop)
    seconds = []
    for begin in range(0, len(ids), 1000):
        start = process_time()
        for id_ in ids[begin : begin + 1000]:
            text.push(id_)
        seconds.append(process_time() - start)
    # The quickest part of each half: other work on the machine only ever adds.
    assert min(seconds[10:]) < 3 * min(seconds[:10])
