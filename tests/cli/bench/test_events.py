"""Counting events does not depend on how they are cut into chunks."""

from __future__ import annotations

import pytest

from lightllm_mp.cli.bench.events import EventCounter, decode, failure

STREAM = b': ping\n\ndata:{"a":1}\n\ndata: {"b":"\\n"}\r\n\r\ndata:{"c":3}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_counted_however_they_are_cut(size: int) -> None:
    counter = EventCounter()
    counts = [counter.feed(STREAM[i : i + size]) for i in range(0, len(STREAM), size)]
    assert sum(counts) == 3
    assert counter.last == b'{"c":3}'


def test_an_unfinished_event_is_not_counted() -> None:
    counter = EventCounter()
    assert counter.feed(b'data:{"a":1}\n\ndata:{"b"') == 1
    assert counter.last == b'{"a":1}'


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"finished":true,"finish_reason":"stop"}', None),
        (b'{"generated_text":["x"],"finish_reason":["stop","length"]}', None),
        (b'{"finish_reason":["stop","abort"]}', "finish_reason abort"),
        (b'{"finished":false}', "the stream ended early"),
        (b'{"error":{"message":"no"}}', "error: no"),
        (b"<html>", "error: the answer is not JSON"),
        (b"[1]", "error: the answer is not a JSON object"),
    ],
)
def test_what_counts_as_failure(data: bytes, expected: str | None) -> None:
    assert failure(decode(data)) == expected
