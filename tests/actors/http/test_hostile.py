"""Requests made to hurt: a clear 4xx in bounded time, and everybody else is served meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from tests.actors.http.harness import PATIENCE, Site, run

GOOD = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
QUICK = 5.0
"""CPU seconds in which anything is refused, by client and server together."""
DEEP = 100_000


def with_parameters(text: str) -> bytes:
    return b'{"inputs":"a","parameters":{%b}}' % text.encode()


def many(name: str, entry: str, count: int) -> bytes:
    return with_parameters(f'"{name}":[' + ",".join([entry] * count) + "]")


WRONG = {
    "nan": with_parameters('"temperature":NaN'),
    "infinity": with_parameters('"temperature":Infinity'),
    "minus infinity": with_parameters('"top_p":-Infinity'),
    "a float that overflows": with_parameters('"temperature":1e400'),
    "a number of a million digits": with_parameters('"max_new_tokens":' + "9" * 1_000_000),
    "an exponent of a million digits": with_parameters('"temperature":1e' + "9" * 1_000_000),
    "an int above 64 bits": with_parameters('"seed":18446744073709551616'),
    "an int above 32 bits": with_parameters('"max_new_tokens":4294967296'),
    "a negative count": with_parameters('"max_new_tokens":-1'),
    "a negative n": with_parameters('"n":-1'),
    "a huge n": with_parameters('"n":1000000000'),
    "a negative repetition penalty": with_parameters('"repetition_penalty":-1.0'),
    "a penalty of zero": with_parameters('"repetition_penalty":0'),
    "a huge negative penalty": with_parameters('"presence_penalty":-1e30'),
    "a huge bias": with_parameters('"logit_bias":{"5":1e30}'),
    "a negative token": with_parameters('"logit_bias":{"-5":1}'),
    "a token outside of the vocabulary": with_parameters('"logit_bias":{"5000":1}'),
    "100,000 biases": with_parameters('"logit_bias":{' + ",".join(f'"{i}":1' for i in range(100_000)) + "}"),
    "100,000 stop strings": many("stop_sequences", '"x"', 100_000),
    "100,000 stop ids": many("stop_sequences", "[5]", 100_000),
    "a long stop string": with_parameters('"stop_sequences":"' + "x" * 1_000_000 + '"'),
    "100,000 allowed ids": many("allowed_token_ids", "5", 100_000),
    "a stop string that is half a surrogate pair": with_parameters('"stop_sequences":["\\ud800"]'),
    "a prompt that is half a surrogate pair": b'{"inputs":"\\udfff"}',
    "a prompt of raw surrogates": b'{"inputs":"\xed\xa0\x80"}',
    "deep lists": b'{"inputs":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"inputs":"a","parameters":' + b'{"x":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep in a field nobody knows": with_parameters('"unknown":' + "[" * DEEP + "]" * DEEP),
    "deep in an image": b'{"inputs":"a","multimodal_params":{"images":[' + b"[" * DEEP + b"]" * DEEP + b"]}}",
    "a regular expression that is too long": with_parameters('"regular_constraint":"' + "(a+)+" * 20_000 + '"'),
    "10 MB of prompt": b'{"inputs":"' + b"a" * 10_000_000 + b'"}',
    "10 MB of escapes": b'{"inputs":"' + rb"\u0061" * 1_700_000 + b'"}',
    "a million ids": b'{"inputs":[' + b",".join([b"5"] * 1_000_000) + b"]}",
    "ids that are negative": b'{"inputs":[-5]}',
    "an id above 64 bits": b'{"inputs":[99999999999999999999999]}',
    "ids that are floats": b'{"inputs":[1.5]}',
    "ids that are booleans": b'{"inputs":[true]}',
    "two values": b'{"inputs":"a"}{"inputs":"b"}',
    "a comment": b'{"inputs":"a"/**/}',
    "a byte order mark": b'\xef\xbb\xbf{"inputs":"a"}',
    "utf-16": '{"inputs":"a"}'.encode("utf-16"),
    "zeros": b"\x00" * 100_000,
}


@pytest.mark.parametrize("name", WRONG)
def test_is_refused_quickly(name: str):
    async def body(s: Site):
        begin = time.process_time()
        status, answer, _ = await s.post("/generate", WRONG[name])
        assert time.process_time() - begin < QUICK
        assert status == 400, answer
        assert len(answer["error"]["message"]) < 300  # what was sent is not sent back
        assert s.frontend.live == 0
        assert not s.engine.tokenizer
        assert (await s.post("/generate", GOOD))[0] == 200

    run(body)


CURIOUS = {
    "negative penalties": with_parameters('"presence_penalty":-2.0,"frequency_penalty":-2,"max_new_tokens":2'),
    "the same name twice": with_parameters('"n":5,"n":1,"max_new_tokens":2'),
    "5,000 names that nobody knows": with_parameters(
        '"max_new_tokens":2,' + ",".join(f'"x{i}":{i}' for i in range(5_000))
    ),
    "a regular expression that explodes": with_parameters('"max_new_tokens":2,"regular_constraint":"(a+)+$"'),
    "nulls": with_parameters('"max_new_tokens":2,"stop_sequences":null,"seed":null,"n":null'),
    "stop strings like expressions": with_parameters(
        '"max_new_tokens":2,"stop_sequences":["(a+)+$",".*","[","\\\\","(?:"]'
    ),
    "zero bytes": b'{"inputs":"a\\u0000b","parameters":{"max_new_tokens":2}}',
    "whole surrogate pairs": b'{"inputs":"\\ud83d\\ude00","parameters":{"max_new_tokens":2}}',
}


@pytest.mark.parametrize("name", CURIOUS)
def test_is_served(name: str):
    async def body(s: Site):
        begin = time.process_time()
        status, answer, headers = await s.post("/generate", CURIOUS[name])
        assert time.process_time() - begin < QUICK
        assert (status, answer.get("count_output_tokens")) == (200, 2), answer
        assert len(headers.get("X-LightLLM-Warning", "")) < 1000

    run(body)


def test_others_are_served_while_large_bodies_are_refused():
    """Decoding is on the event loop: what one body costs, the others wait."""

    async def body(s: Site):
        large = [WRONG[name] for name in ("10 MB of prompt", "a million ids", "100,000 biases", "deep lists")]
        refusals = [asyncio.create_task(s.post("/generate", data)) for data in large * 2]
        slowest = 0.0
        while not all(task.done() for task in refusals):
            begin = time.process_time()
            assert (await s.get("/health"))[0] == 200
            slowest = max(slowest, time.process_time() - begin)
        assert {task.result()[0] for task in refusals} == {400}
        assert slowest < QUICK

    run(body)


HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps(GOOD).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
HEADS = {
    "a header of 1 MB": (HEAD + LENGTH + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n" + BODY, {431}),
    "a header's name of 1 MB": (HEAD + LENGTH + b"a" * (1 << 20) + b": x\r\n\r\n" + BODY, {431}),
    "a path of 1 MB": (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n", {431, 414}),
    "1 MB of small headers": (HEAD + LENGTH + b"X: y\r\n" * (1 << 18) + b"\r\n" + BODY, {400, 431}),
    "a line without an end": (b"a" * (1 << 20), {400, 431}),
    "two lengths": (HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY, {400}),
    "a length and chunks": (HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + BODY, {400}),
    "a negative length": (HEAD + b"Content-Length: -5\r\n\r\n" + BODY, {400}),
    "a length with a sign": (HEAD + b"Content-Length: +5\r\n\r\n" + BODY, {400}),
    "a length of 100 digits": (HEAD + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n" + BODY, {400, 413}),
    "a folded header": (HEAD + LENGTH + b"X: a\r\n b\r\n\r\n" + BODY, {400}),
    "a line feed in a name": (HEAD + LENGTH + b"X\ny: a\r\n\r\n" + BODY, {400}),
    "an unknown coding": (
        HEAD + b"Transfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        {415},
    ),
    "a huge chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + BODY, {400, 413}),
    "a chunk's size of 1 MB": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * (1 << 20), {400, 408}),
    "a chunk's extension of 1 MB": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * (1 << 20), {400, 408}),
    "no such expectation": (HEAD + LENGTH + b"Expect: the-impossible\r\nConnection: close\r\n\r\n" + BODY, {417}),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str):
    data, expected = HEADS[name]

    async def body(s: Site):
        begin = time.monotonic()
        try:
            answer = await s.raw(data)
        except ConnectionError:  # refused while it was still being sent
            answer = b""
        assert time.monotonic() - begin < PATIENCE  # a body that never ends is 408, and its rest is read for a moment
        assert not answer or int(answer.split(b" ", 2)[1]) in expected, answer[:200]
        assert answer.count(b"HTTP/1.1 ") <= 1  # nothing is read as a second request
        assert s.frontend.live == 0
        assert not s.engine.tokenizer
        assert (await s.post("/generate", GOOD))[0] == 200

    run(body, header_timeout=0.5)


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    for i in range(0, len(data), size):
        yield b"%x\r\n%b\r\n" % (len(data[i : i + size]), data[i : i + size])


def test_a_body_of_a_byte_a_chunk_and_trailers():
    async def body(s: Site):
        head = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        padded = BODY + b" " * 100_000
        begin = time.process_time()
        assert b"generated_text" in await s.raw(head + b"".join(chunks(padded, 1)) + b"0\r\n\r\n")
        assert time.process_time() - begin < QUICK
        assert b"generated_text" in await s.raw(head + b"".join(chunks(BODY, 9)) + b"0\r\nX-Trailer: a\r\n\r\n")
        try:
            flood = await s.raw(head + b"".join(chunks(BODY, 9)) + b"0\r\n" + b"X: a\r\n" * 200_000 + b"\r\n")
        except ConnectionError:
            flood = b""
        assert b" 200 " not in flood.split(b"\r\n")[0]
        assert (await s.post("/generate", GOOD))[0] == 200

    run(body, header_timeout=2.0)


def test_one_label_for_many_requests_at_once():
    """A label is only echoed; who gets which answer does not depend on it."""

    async def body(s: Site):
        same = {"X-Request-Id": "same"}
        bodies = [{"inputs": "a", "parameters": {"max_new_tokens": 1 + i % 9}} for i in range(60)]
        answers = await asyncio.gather(*(s.post("/generate", data, headers=same) for data in bodies))
        for i, (status, answer, headers) in enumerate(answers):
            assert (status, answer["count_output_tokens"], headers["X-Request-Id"]) == (200, 1 + i % 9, "same")
        assert s.frontend.live == 0

    run(body)


def test_a_thousand_pipelined_requests():
    async def body(s: Site):
        one = HEAD + LENGTH + b"\r\n" + BODY
        last = b"GET /liveness HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await s.raw(one * 1000 + last)
        assert answer.count(b"HTTP/1.1 200") == 1001
        assert s.frontend.live == 0

    run(body)
