"""Bodies as large as the limit, of every shape: decoded in pieces or refused, and others are served in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from lightllm_mp.actors.http import schema
from lightllm_mp.errors import EngineError, InvalidRequest, PromptTooLong
from lightllm_mp.sampling_parameters import (
    MAX_ALLOWED,
    MAX_BIASES,
    MAX_ID,
    MAX_STOP_BYTES,
    MAX_STOPS,
    output,
    sampling,
)
from tests.actors.http.harness import FACTS, Engine, site

LIMIT = 32 << 20
CONTEXT = 1 << 17
SLOWEST = 0.12
"""CPU seconds of one turn of the loop; on the machine of the measurements it is half of that."""


def filled(before: str, entry: str | Callable[[int], str], after: str, joint: str = ",") -> bytes:
    """A body of LIMIT bytes with as many entries as fit."""
    unit = entry if isinstance(entry, str) else entry(10**6)
    count = (LIMIT - len(before.encode()) - len(after)) // len((unit + joint).encode())
    entries = [unit] * count if isinstance(entry, str) else map(entry, range(10**6, 10**6 + count))
    return (before + joint.join(entries) + after).encode()


def named(number: int) -> str:
    return f'"{number}":1'


SHAPES: dict[str, Callable[[], bytes]] = {
    "unknown names": lambda: filled('{"inputs":"a",', named, "}"),
    "unknown parameters": lambda: filled('{"inputs":"a","parameters":{', named, "}}"),
    "a schema as an object": lambda: filled('{"inputs":"a","parameters":{"guided_json":{', named, "}}}"),
    "biases": lambda: filled('{"inputs":"a","parameters":{"logit_bias":{', named, "}}}"),
    "short ids": lambda: filled('{"inputs":[', "5", "]}"),
    "long ids": lambda: filled('{"inputs":[', "1234567", "]}"),
    "ids far apart": lambda: filled('{"inputs":[', "5" + " " * 200_000, "]}"),
    "text": lambda: filled('{"inputs":"', "a" * 1000, '"}', ""),
    "escapes": lambda: filled('{"inputs":"', r"\u0061" * 1000, '"}', ""),
    "a wide letter in a text": lambda: filled('{"inputs":"\U0001f600', "a" * 1000, '"}', ""),
    "deep lists": lambda: filled('{"inputs":"a","unknown":[', "[" * 900 + "]" * 900, "]}"),
    "empty lists": lambda: filled('{"inputs":"a","unknown":[', "[]", "]}"),
    "images": lambda: filled('{"inputs":"a","multimodal_params":{"images":[', '""', "]}}"),
    "sounds": lambda: filled('{"inputs":"a","multimodal_params":{"audios":[', "0", "]}}"),
    "one image": lambda: filled('{"inputs":"a","multimodal_params":{"images":["', "A" * 1000, '"]}}', ""),
}


def turns(data: bytes) -> tuple[float, EngineError | None]:
    """The longest turn of decoding, in CPU seconds, and how it ended."""

    async def decode() -> None:
        await schema.check_nesting(data)
        await asyncio.sleep(0)
        body = schema.generate_body(data)
        schema.parameters(body.parameters)
        await schema.prompt(body.inputs, CONTEXT)
        if body.multimodal_params is not None:
            schema.items(body.multimodal_params.audios, "audios")
            schema.items(body.multimodal_params.images, "images")

    return longest_turn(decode())


def longest_turn(work: Coroutine[Any, Any, None]) -> tuple[float, EngineError | None]:
    """Of decoding, in CPU seconds, and how it ended."""
    longest, error = 0.0, None
    while True:
        begin = time.thread_time()
        try:
            work.send(None)
        except StopIteration:
            break
        except EngineError as caught:
            error = caught
            break
        finally:
            longest = max(longest, time.thread_time() - begin)
    return longest, error


@pytest.mark.parametrize("shape", SHAPES)
def test_no_body_keeps_others_waiting(shape: str) -> None:
    data = SHAPES[shape]()
    assert LIMIT - 300_000 < len(data) <= LIMIT
    for _ in range(4):  # a busy machine has slow moments
        longest, error = turns(data)
        assert error is None or isinstance(error, InvalidRequest)
        if longest < SLOWEST:
            return
    pytest.fail(f"one turn of the loop takes {longest:.2f} s")


def escaped(text: str) -> str:
    return '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'


def test_the_largest_legal_parameters_are_taken() -> None:
    stops = ",".join(escaped(f"{number:02}" + "a" * (MAX_STOP_BYTES - 2)) for number in range(MAX_STOPS))
    biases = ",".join(f"{escaped(str(MAX_ID - number))} : -99.123456789012345" for number in range(MAX_BIASES))
    allowed = ",\n        ".join(str(MAX_ID - number) for number in range(MAX_ALLOWED))
    raw = f'{{"stop_sequences":[{stops}],"logit_bias":{{{biases}}},"allowed_token_ids":[{allowed}]}}'.encode()
    assert len(raw) > 190_000
    found, unknown = schema.parameters(msgspec.Raw(raw))
    assert not unknown
    assert [len(stop) for stop in output(found).stop] == [MAX_STOP_BYTES] * MAX_STOPS
    assert len(sampling(found).bias_ids) >= 4 * MAX_BIASES
    with pytest.raises(InvalidRequest, match="longer than"):
        schema.parameters(msgspec.Raw(raw + b" " * schema.PARAMETERS_BYTES))


def prompt(value: object, max_input: int = 0) -> str | bytes:
    return asyncio.run(schema.prompt(msgspec.Raw(json.dumps(value).encode()), max_input))


def test_ids_in_pieces_are_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [number * 37 % 90_000 for number in range(5000)]
    for piece in (1, 7, 1000, 1 << 16):
        monkeypatch.setattr(schema, "PIECE", piece)
        column = prompt(ids)
        assert isinstance(column, bytes)
        assert memoryview(column).cast("i").tolist() == ids
        for wrong in ([*ids, "5"], [*ids, 1.5], [*ids, [5]], [*ids, -201], [*ids, 2**31], [[1, 2], 3], ["a,b", 3], []):
            with pytest.raises(InvalidRequest, match=r"inputs: Expected|not JSON"):
                prompt(wrong)
    with pytest.raises(PromptTooLong):
        prompt([5] * 100_000, 10)


def test_a_text_is_judged_by_its_letters_not_by_its_bytes() -> None:
    for letter in ("a", "é", "\U0001f600", '"'):
        assert prompt(letter * 160, 10) == letter * 160
        with pytest.raises(PromptTooLong):
            prompt(letter * 161, 10)
        with pytest.raises(PromptTooLong):
            prompt(letter * 10_000, 10)


@pytest.mark.parametrize("inputs", ["a " * 300_000, [5] * 30_000])
def test_a_prompt_that_may_be_cut_is_not_refused_for_its_length(inputs: str | list[int]) -> None:
    async def status(mode: str) -> int:
        limits = msgspec.structs.replace(FACTS.engine, long_truncation_mode=mode)
        async with site(engine=Engine(facts=msgspec.structs.replace(FACTS, engine=limits))) as s:
            return (await s.post("/generate", {"inputs": inputs}))[0]

    assert asyncio.run(status("")) == 400
    assert asyncio.run(status("head")) == 200
