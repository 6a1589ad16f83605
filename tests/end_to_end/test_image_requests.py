"""A real server and clients that send files that are not images, images that are too large, and forbidden URLs."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp import Server
from tests.actors.embedded import write_byte_tokenizer
from tests.end_to_end.image_served import (
    GOLDENS,
    GOOD,
    IMAGE,
    asking,
    base64_image,
    media,
    refused,
    serving,
    until_clean,
    url,
)
from tests.end_to_end.served import post
from tests.end_to_end.test_served_model import children
from tests.vision.image_files import bomb, encoded, noise, png_of


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny LLaVA whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("llava")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(GOLDENS / "llava_hf" / file, folder)
    write_byte_tokenizer(folder)
    with serving(folder) as server:
        yield server


def test_the_query_of_the_readme(llava: Server) -> None:
    body = asking(base64_image(GOOD), text="USER: <image>\nWhat is this? ASSISTANT:")
    body["parameters"] = {"do_sample": False, "ignore_eos": False, "max_new_tokens": 5}
    assert post(llava, "/generate", body)["count_output_tokens"] >= 1
    several = asking(base64_image(GOOD), base64_image(encoded(noise(50, 20), "JPEG")), text="<image> or <image>?")
    assert post(llava, "/generate", several)["count_output_tokens"] >= 1
    lines = base64.encodebytes(GOOD).decode()
    assert post(llava, "/generate", asking({"type": "base64", "data": lines}))["finish_reason"]
    until_clean(llava)


def test_tokens_are_counted_by_size(llava: Server) -> None:
    sized = {"text": "<image>abc", "multimodal_params": {"images": [{"type": "image_size", "data": [30, 40]}]}}
    known = {"text": "<image>abc", "multimodal_params": {"images": [base64_image(GOOD) | {"image_size": [30, 40]}]}}
    whole = {"text": "<image>abc", "multimodal_params": media(GOOD)}
    counts = [post(llava, "/tokens", body)["ntokens"] for body in (sized, known, whole, {"text": "abc"})]
    assert counts == [3 + 16, 3 + 16, 3 + 16, 3]


HOSTILE = {
    "bomb": (base64_image(bomb()), 413, "over the limit"),
    "bomb within the limit": (base64_image(png_of(8000, 8000, bytes(3_000_000))), 400, "damaged"),
    "no image": (base64_image(b"hello" * 100), 415, "formats"),
    "html": (base64_image(b"<html></html>"), 415, "formats"),
    "svg": (base64_image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 415, "formats"),
    "empty": (base64_image(b""), 400, "empty"),
    "cut off": (base64_image(GOOD[:-300]), 400, "damaged"),
    "header only": (base64_image(GOOD[:20]), 400, "damaged"),
    "wrong base64": ({"type": "base64", "data": "%%%not base64%%%"}, 400, "base64"),
    "cut base64": ({"type": "base64", "data": base64.b64encode(GOOD).decode()[:-3]}, 400, "base64"),
    "data prefix": (
        {"type": "base64", "data": "data:image/png;base64," + base64.b64encode(GOOD).decode()},
        400,
        "data:",
    ),
    "unknown type": ({"type": "file", "data": "/etc/passwd"}, 400, "multimodal_params"),
    "no data": ({"type": "base64"}, 400, "needs its data"),
    "a number": ({"type": "base64", "data": 5}, 400, "multimodal_params"),
    "loopback": (url("http://127.0.0.1/x.png"), 400, "not public"),
    "localhost": (url("http://localhost/x.png"), 400, "not public"),
    "loopback in hexadecimal": (url("http://0x7f000001/x.png"), 400, "not public"),
    "metadata": (url("http://169.254.169.254/latest/meta-data/"), 400, "not public"),
    "mapped": (url("http://[::ffff:127.0.0.1]/x.png"), 400, "not public"),
    "file": (url("file:///etc/passwd"), 400, "http or https"),
    "data url": (url("data:image/png;base64,AAAA"), 400, "http or https"),
    "credentials": (url("http://user:word@example.com/"), 400, "user name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images(llava: Server, name: str) -> None:
    image, status, saying = HOSTILE[name]
    begin = time.monotonic()
    for path in ("/generate", "/generate_stream"):
        code, message = refused(llava, asking(image), path)
        assert code == status
        assert saying in message
        assert "Error" not in message
        assert "Pillow" not in message
        assert "0x" not in message
    assert time.monotonic() - begin < 10
    until_clean(llava)


def descriptors(server: Server) -> dict[str, int]:
    """Open descriptors of each actor, and the number of decoder processes."""
    actors = children(server)
    found = {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in actors.items()}
    visual = actors["visual"]
    return found | {"decoders": len(Path(f"/proc/{visual}/task/{visual}/children").read_text().split())}


def test_hostile_images_leave_nothing(llava: Server) -> None:
    """Sends the whole list repeatedly, with good images among them."""
    bodies = [asking(image) for image, *_ in HOSTILE.values()]

    def status(body: dict[str, Any]) -> int:
        try:
            return 200 if post(llava, "/generate", body)["finish_reason"] else 0
        except urllib.error.HTTPError as error:
            return error.code

    def wave() -> None:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(status, bodies)) == [status for _, status, _ in HOSTILE.values()]
            assert list(pool.map(status, [asking(base64_image(GOOD))] * 8)) == [200] * 8
        until_clean(llava)

    wave()
    before = descriptors(llava)
    for _ in range(3):
        wave()
    deadline = time.monotonic() + 10
    while (after := descriptors(llava)) != before and time.monotonic() < deadline:
        time.sleep(0.1)  # connections close a moment after their answers
    assert after == before


def test_counts_that_differ(llava: Server) -> None:
    good = base64_image(GOOD)
    for images, text, saying in (
        ([good], "no tag", "0 places for images (tag <image>), the request brings 1"),
        ([good, good], "<image>", "1 places for images (tag <image>), the request brings 2"),
        ([], "<image>", "1 places for images (tag <image>), the request brings 0"),
        ([good], [5, IMAGE, IMAGE], "2 places for images (id -200), the request brings 1"),
        ([], [5, IMAGE], "1 places for images (id -200), the request brings 0"),
        ([good] * 33, "<image>" * 33, "33 images, at most 32"),
        ([base64_image(encoded(noise(30 + i), "PNG")) for i in range(11)], "<image>" * 11, "the cache holds 10"),
        ([], [5, -3], "token ids must lie between"),
        ([good], [5, -201], "inputs"),
    ):
        code, message = refused(llava, asking(*images, text=text))  # type: ignore[arg-type]
        assert code == 400
        assert saying in message
    until_clean(llava)


def test_bodies_and_files_that_are_too_large(llava: Server) -> None:
    host, port = llava.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
        assert b" 413 " in client.recv(4096).split(b"\r\n")[0]
    assert refused(llava, asking({"type": "base64", "data": "A" * (33 << 20)}))[0] == 413
