"""Stop strings against a plain search in the whole text."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.text.detokenizer import IncrementalText
from lightllm_mp.text.stop_strings import StopStrings, check_stops
from tests.text.tokenizer_samples import sample


def first_match(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Begin and end of the match that ends first, the longest of those."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return min(ends)[::-1] if ends else None


def push_all(text: str, stops: list[str], *, keep_stop: bool = False) -> tuple[list[str], IncrementalText]:
    tokenizer = sample("byte_level")
    state = IncrementalText(tokenizer, stop=stops, keep_stop=keep_stop)
    return [state.push(tokenizer.token_to_id("Ġ" if char == " " else char)) for char in text], state


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(alphabet="ab c", max_size=30),
    stops=st.lists(st.text(alphabet="ab c", min_size=1, max_size=6), min_size=1, max_size=5),
    keep=st.booleans(),
)
def test_as_a_plain_search(text: str, stops: list[str], keep: bool) -> None:
    shown, state = push_all(text, stops, keep_stop=keep)
    whole = "".join(shown) + state.finish()
    match = first_match(text, stops)
    assert state.stopped == (match is not None)
    assert whole == (text if match is None else text[: match[1 if keep else 0]])


@pytest.mark.parametrize("keep", [False, True])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_the_tokens(keep: bool, data: st.DataObject) -> None:
    """The result depends on the text, not on how tokens cut it."""
    tokenizer = sample("byte_level")
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=25))
    text = tokenizer.decode(ids)
    begins = st.integers(0, max(len(text) - 1, 0))
    stops = [text[b : b + n] for b, n in data.draw(st.lists(st.tuples(begins, st.integers(1, 5)), max_size=4))]
    stops = [stop for stop in stops if stop]
    state = IncrementalText(tokenizer, stop=stops, keep_stop=keep)
    shown = "".join(state.push(id_) for id_ in ids) + state.finish()
    match = first_match(text, stops) if stops else None
    assert shown == (text if match is None else text[: match[1 if keep else 0]])


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("hello END more", ["END"], "hello "),
        ("abc", ["ab", "abc"], ""),
        ("abc", ["abc", "ab"], ""),
        ("xabcd", ["abce", "bcd"], "xa"),
        ("xabcd", ["abcd", "bc"], "xa"),
        ("xbc", ["c", "bc"], "x"),
        ("aaab", ["aab"], "a"),
        ("stop", ["stop"], ""),
        ("s", ["s"], ""),
        ("almost stoo", ["stop"], "almost stoo"),
        ("ends with sto", ["stop"], "ends with sto"),
    ],
)
def test_examples(text: str, stops: list[str], shown: str) -> None:
    pieces, state = push_all(text, stops)
    assert "".join(pieces) + state.finish() == shown
    assert all(stop not in shown for stop in stops)


def test_nothing_of_a_stop_string_shows_early() -> None:
    pieces, state = push_all("a sto sta stop b", ["stop"])
    assert pieces == ["a", " ", "", "", "", "sto ", "", "", "sta", " ", "", "", "", "", "", ""]
    assert state.stopped
    assert state.finish() == ""


def test_a_kept_stop_string_holds_nothing_back() -> None:
    pieces, state = push_all("a stop b", ["stop"], keep_stop=True)
    assert "".join(pieces) == "a stop"
    assert pieces[:3] == ["a", " ", "s"]
    assert state.stopped


def test_stop_at_the_first_token_and_rest_of_its_text_dropped() -> None:
    tokenizer = sample("byte_level")
    state = IncrementalText(tokenizer, stop=["h"])
    assert state.push(tokenizer.token_to_id("the")) == "t"
    assert state.stopped
    assert state.push(tokenizer.token_to_id("the")) == ""


def test_stop_string_that_only_the_flushed_end_completes() -> None:
    tokenizer = sample("byte_level")
    state = IncrementalText(tokenizer, stop=["a\ufffd"])
    assert state.push(tokenizer.token_to_id("a")) == ""
    assert state.push(tokenizer.token_to_id("ð")) == ""
    assert not state.stopped
    assert state.finish() == ""
    assert state.stopped


def test_limits() -> None:
    assert check_stops(["a", "", "a", "b"]) == ("a", "b")
    assert len(check_stops([str(i).rjust(1024) for i in range(16)])) == 16
    with pytest.raises(InvalidRequest, match="17 stop strings"):
        check_stops([str(i) for i in range(17)])
    with pytest.raises(InvalidRequest, match="1024 bytes"):
        check_stops(["é" * 513])


def test_long_stop_strings_that_almost_match() -> None:
    """The classic worst case of a plain search: each character starts a match of a thousand."""
    stops = StopStrings(["a" * 1023 + end for end in "bcdefghijklmnopq"])
    assert stops.find("a" * 100_000) is None
    assert stops.held == 1023
    assert stops.find("q") == (1, 1024)


def test_a_sequence_starts_without_preparation() -> None:
    """256 sequences with lists of their own, each as large as is legal: neither time nor memory to speak of."""
    lists = [[f"{row:03}{number:02}".ljust(1024, "x") for number in range(16)] for row in range(256)]
    begin = process_time()
    many = [StopStrings(stops) for stops in lists]
    assert process_time() - begin < 0.5  # an automaton for each took 5 s
    many[0].find("000")
    assert [one.held for one in many[:2]] == [3, 0]


def test_the_state_is_as_long_as_a_stop_string() -> None:
    stops = StopStrings(["ab" * 512])
    for _ in range(50):
        assert stops.find("b" + "ab" * 300) is None
        assert stops.held == 600
    assert stops.find("ab" * 212) == (424, 1024)


def shown_with(name: str, tokens: list[str], **options: object) -> tuple[str, IncrementalText]:
    tokenizer = sample(name)
    state = IncrementalText(tokenizer, **options)
    return "".join(state.push(tokenizer.token_to_id(token)) for token in tokens) + state.finish(), state


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("name", "word", "end"),
    [
        ("byte_level", "a", "<|end|>"),
        ("byte_level", "a", "<tool call>"),  # an added token that is not special
        ("sentencepiece", "hello", "</s>"),
        ("word_piece", "play", "[SEP]"),
        ("default", "Hello", "<|im_end|>"),  # a GGUF file
    ],
)
def test_a_token_stops_whether_or_not_it_is_shown(name: str, word: str, end: str, keep: bool, skip: bool) -> None:
    spaces = {"spaces_between_special_tokens": False}
    options = {"stop": ["never", end], "keep_stop": keep, "skip_special_tokens": skip, **spaces}
    shown, state = shown_with(name, [word, end, word], **options)
    assert state.stopped
    assert shown == (word + end if keep else word)


def test_a_skipped_token_that_is_no_stop_string_is_no_text() -> None:
    shown, state = shown_with("byte_level", ["a", "<|begin|>", "a"], stop=["<|end|>", "<|beg", "aa"])
    assert state.stopped, "the text is aa"
    assert shown == ""


def test_text_that_was_held_back_comes_before_a_skipped_stop() -> None:
    for keep in (True, False):
        shown, _ = shown_with("byte_level", ["a", "b", "<|end|>"], stop=["bc", "<|end|>"], keep_stop=keep)
        assert shown == ("ab<|end|>" if keep else "ab")


def test_an_unfinished_character_before_a_skipped_stop_may_complete_another() -> None:
    half = sample("byte_level").token_to_id("ð")
    assert half is not None
    shown, state = shown_with("byte_level", ["a", "ð", "<|end|>"], stop=["a\ufffd", "<|end|>"], keep_stop=True)
    assert (shown, state.stopped) == ("a\ufffd", True)
