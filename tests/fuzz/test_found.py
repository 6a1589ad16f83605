"""What fuzzing has found. Each of these broke a promise once."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable

import numpy as np
import pytest

from lightllm_mp.actors.http import image_inputs, schema
from lightllm_mp.actors.http.image_fetch import Fetcher, FetchFailed, checked
from lightllm_mp.actors.http.security.url_guard import ForbiddenAddress, UrlGuard
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import InvalidRequest, ModelError
from lightllm_mp.messages import Sampling
from lightllm_mp.models.checkpoint.gguf import read_gguf
from lightllm_mp.plan import HEADER_WORDS, SETUP_DTYPE, PlanBuilder, unpack
from lightllm_mp.text.sentencepiece_file import from_sentencepiece
from lightllm_mp.vision.header import read_header
from tools.fuzz import files, peers, requests


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "127.0.0.01", "0", "[::ffzf:127.0.0.1]"])
def test_an_address_in_an_old_form_is_refused_before_anybody_connects(host: str) -> None:
    """Such a host is no address to `ipaddress`, but aiohttp asks no resolver for it, and a socket knows what it is."""
    with pytest.raises(ForbiddenAddress):
        UrlGuard(()).check_literal(host)
    UrlGuard((host,)).check_literal(host)
    UrlGuard(()).check_literal("1.example")


@pytest.mark.parametrize("url", ["http://[::]@", "http://[64:f\0\0:6f00:1]:80#0/a.png"])
def test_a_url_that_breaks_the_parser_is_the_clients_error(url: str) -> None:
    with pytest.raises(FetchFailed):
        checked(url)

    async def fetch() -> None:
        await Fetcher(MultimodalConfig()).fetch(url, lambda size: None)

    with pytest.raises(FetchFailed):
        asyncio.run(fetch())


def test_an_error_does_not_repeat_what_was_sent() -> None:
    """A name out of a list, wrong and a thousand characters long."""
    with pytest.raises(InvalidRequest) as caught:
        image_inputs.item(schema.msgspec.Raw(json.dumps({"type": "secret" * 200, "data": ""}).encode()))
    assert caught.value.message == "multimodal_params.images.type: Invalid enum value"


@pytest.mark.parametrize("value", ["the-impossible", "100-\xd0", "HTTP/1.1 200 OK"])
@pytest.mark.parametrize("path", ["/generate", "/nowhere"])
def test_an_unknown_expectation_is_417_and_not_repeated(value: str, path: str) -> None:
    server = requests.engine_server()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nExpect: {value}\r\nContent-Length: 2\r\n\r\n".encode("latin-1")
    answer = server.loop.run_until_complete(server.talk([head + b"{}"]))
    first, _, rest = answer.partition(b"\r\n")
    assert first.split(b" ", 2)[1] == b"417"
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert value.encode("latin-1") not in rest


@pytest.mark.parametrize(
    "record",
    [b"\x92\xa6Failed\xa2\xff\xff", b"\x91\xa4S\x91op", b"\x93\xa4Ping\x01" + b"\x91" * 3000 + b"\x01"],
    ids=["text that is not UTF-8", "a tag that is not UTF-8", "nested deeply"],
)
def test_a_record_that_msgspec_gives_up_on_poisons_its_lane(record: bytes) -> None:
    peer = peers.Peer()
    peer.record(1, record)  # asserts that the error is a ProtocolError and the lane poisoned
    peer.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("biases", 2), ("biases", -1), ("masked", 1), ("masked", 2**31 - 1), ("allowed", 1), ("allowed", -1)],
)
def test_tails_of_a_plan_that_do_not_add_up(name: str, value: int) -> None:
    builder = PlanBuilder(1)
    bias = np.arange(3, dtype="<i4").tobytes()
    builder.setup(0, 3, Sampling(seed=1, bias_ids=bias, bias_values=bias), (1, 2))
    words = np.frombuffer(builder.pack(), "<i4").copy()
    assert len(unpack(words.tobytes()).setups[0].masked_ids) == 2
    words[HEADER_WORDS:][: SETUP_DTYPE.itemsize // 4].view(SETUP_DTYPE)[name] = value
    with pytest.raises(ValueError, match="tail"):
        unpack(words.tobytes())


@pytest.mark.parametrize("shape", [(), (0,), (2**40, 0, 2**40)])
def test_a_gguf_tensor_without_numbers(shape: tuple[int, ...]) -> None:
    kind = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    tensor = struct.pack("<Q", 1) + b"w" + kind
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor
    with files.file_of(data + bytes(64)) as path, pytest.raises(ModelError, match="the shape"):
        read_gguf(path)


def test_a_sentencepiece_model_without_an_unknown_piece() -> None:
    """It was read, and failed with the first text that had a strange character."""
    for data in files.sentencepiece_seeds():
        damaged = data.replace(b"<unk>\x15\0\0\0\x80\x18\x02", b"<unk>\x15\0\0\0\x80\x18\x01")
        assert damaged != data
        with files.file_of(damaged) as path, pytest.raises(ModelError, match="no unknown piece"):
            from_sentencepiece(path, {})


def test_a_sentencepiece_model_whose_character_map_lies_about_its_length() -> None:
    """The library aborted the process: `memory allocation of 6476005376 bytes failed`."""
    for data in files.sentencepiece_seeds():
        rules = b"\x12\x08\xff\xff\xff\x7f\0\0\0\0"
        damaged = data.replace(b"\x1a\x0e\x0a\x08identity", b"\x1a\x18\x0a\x08identity" + rules)
        assert damaged != data
        with files.file_of(damaged) as path, pytest.raises(ModelError, match="character map is truncated"):
            from_sentencepiece(path, {})


FRAME = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 40, 30) + b"\x03" + bytes(9)
SCREEN = b"GIF89a" + struct.pack("<HHBBB", 3, 4, 0, 0, 0)
FIRST = b"\x2c" + struct.pack("<HHHHB", 0, 0, 3, 4, 0)
ENTRY = struct.pack("<HHII", 1, 3, 1, 1)
SIZES = struct.pack("<HHII", 0x0100, 4, 1, 3) + struct.pack("<HHII", 0x0101, 4, 1, 4)


def tiff(entries: int) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, entries + 2) + ENTRY * entries + SIZES


@pytest.mark.parametrize(
    ("make", "few", "many"),
    [
        (lambda count: b"\xff\xd8" + b"\xff" * count + FRAME, 1000, 20_000),
        (lambda count: SCREEN + b"\x21\xfe" + b"\x01a" * count + b"\0" + FIRST, 3000, 200_000),
        (lambda count: SCREEN + b"\x21\xfe\0" * count + FIRST, 3000, 200_000),
        (tiff, 500, 5000),
    ],
    ids=["fill bytes of a JPEG", "sub-blocks of a GIF", "extensions of a GIF", "tags of a TIFF"],
)
def test_what_an_image_puts_before_its_size_is_bounded(make: Callable[[int], bytes], few: int, many: int) -> None:
    """A file of 32 MiB of them kept a core busy for seconds."""
    assert read_header(make(few)).width in (3, 30)
    with pytest.raises(InvalidRequest):
        read_header(make(many))


def test_of_many_exif_segments_the_first_counts() -> None:
    def segment(orientation: int) -> bytes:
        exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0)
        return b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif

    assert read_header(b"\xff\xd8" + segment(6) + segment(3) + FRAME).orientation == 6
    assert read_header(b"\xff\xd8" + segment(1) + segment(6) + FRAME).orientation == 1
