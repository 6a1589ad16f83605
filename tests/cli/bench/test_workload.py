"""The workload is the same everywhere, and as long as it says."""

from __future__ import annotations

import pytest

from lightllm_mp.cli.bench.workload import FIRST_ID, make
from lightllm_mp.errors import ConfigError


def test_the_sharegpt_workload_is_the_published_one() -> None:
    requests = make(2000, "sharegpt", "sharegpt")
    assert sum(r.input_len for r in requests) == 470_634
    assert sum(r.output_len for r in requests) == 377_679
    assert all(len(r.prompt) == r.input_len for r in requests)
    assert all(r.input_len + r.output_len <= 2048 for r in requests)


def test_fewer_requests_are_the_first_ones_and_seeds_differ() -> None:
    assert make(5, "sharegpt", "sharegpt") == make(9, "sharegpt", "sharegpt")[:5]
    assert make(5, "sharegpt", "sharegpt", seed=1) != make(5, "sharegpt", "sharegpt")
    assert make(5, "8", "8", name="warmup-")[0].prompt != make(5, "8", "8")[0].prompt


def test_ids_are_inside_the_vocabulary() -> None:
    ids = [i for r in make(20, "uniform:3-9", "2", vocab=300) for i in r.prompt]
    assert min(ids) >= FIRST_ID
    assert max(ids) < 300
    assert all(i in (9, 8) for r in make(3, "5", "5", vocab=10) for i in r.prompt)


def test_uniform_lengths_fill_their_range() -> None:
    requests = make(200, "uniform:3-5", "7")
    assert {r.input_len for r in requests} == {3, 4, 5}
    assert {r.output_len for r in requests} == {7}


def test_texts_have_so_many_words() -> None:
    for request in make(10, "uniform:1-30", "1", prompt="text"):
        assert isinstance(request.prompt, str)
        assert len(request.prompt.split()) == request.input_len


@pytest.mark.parametrize("length", ["", "0", "-3", "x", "uniform:5", "uniform:5-3", "uniform:0-3", "normal:1-2", "3-4"])
def test_wrong_lengths_are_refused(length: str) -> None:
    with pytest.raises(ConfigError, match="expected N, uniform:a-b or sharegpt"):
        make(1, length, "1")
