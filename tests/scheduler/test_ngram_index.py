"""Prompt look-up finds earlier occurrences, whether ids come one by one or many at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lightllm_mp.scheduler.speculation.ngram_index import CANDIDATES, NGRAM, NgramIndex


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_what_follows_the_last_ids() -> None:
    index = NgramIndex()
    text = ids(1, 2, 3, 4, 5, 6, 7, 9, 9, 2, 3, 4)
    assert index.propose(text, 3).tolist() == [5, 6, 7]
    assert index.propose(np.append(text, ids(5, 6)), 2).tolist() == [7, 9], "it goes on with the match"
    assert index.propose(np.append(text, ids(5, 6, 8)), 2).tolist() == [], "until another id comes"


def test_nothing_is_proposed_for_what_is_new() -> None:
    index = NgramIndex()
    for length in range(8):
        assert not len(index.propose(np.arange(length, dtype=np.int32), 4))


def test_the_longest_equal_past_wins_and_of_equals_the_newest() -> None:
    a, b, c = [11, 1, 2, 3, 50], [12, 1, 2, 3, 60], [13, 1, 2, 3, 70]
    assert NgramIndex().propose(ids(*a, *b, *c, 12, 1, 2, 3), 1).tolist() == [60]
    assert NgramIndex().propose(ids(*a, *b, *c, 14, 1, 2, 3), 1).tolist() == [70]


def test_a_loop_goes_on_as_a_loop() -> None:
    assert NgramIndex().propose(ids(9, 4, 5, 4, 5, 4, 5, 4), 5).tolist() == [5, 4, 5, 4, 5]


@pytest.mark.parametrize("seed", range(6))
def test_however_the_ids_come_a_match_is_one(seed: int) -> None:
    """With few kinds of n-grams, it also misses no match except because of the bound on candidates."""
    random = np.random.default_rng(seed)
    text, index, length = random.integers(0, 12, 800).astype(np.int32), NgramIndex(), 0
    while length < len(text):
        length = min(len(text), length + int(random.integers(1, 200 if random.random() < 0.1 else 9)))
        past, last = text[:length], text[max(0, length - NGRAM) : length]
        found = index.propose(past, 1)
        places = [at for at in range(NGRAM, length) if (text[at - NGRAM : at] == last).all()]
        if len(found):
            assert any(text[at] == found[0] for at in places)
        else:
            assert not places[-CANDIDATES + 4 :]


def test_memory_is_bounded_by_the_tokens() -> None:
    text, index = np.arange(100_000, dtype=np.int32) % 5000, NgramIndex()
    tracemalloc.start()
    for length in range(1000, len(text) + 1, 9000):
        index.propose(text[:length], 8)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 16 * len(text)
    assert most < 100 * len(text)
