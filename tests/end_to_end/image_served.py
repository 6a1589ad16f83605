"""Helpers for tests of real servers with images: requests, checks, and hosts of images."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from tests.end_to_end.served import START, get
from tests.end_to_end.test_served_model import until_idle
from tests.paths import GOLDENS
from tests.vision.image_files import encoded, noise

IMAGE = -200


@contextlib.contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[Server]:
    config = Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=4000, threads=1),
        http=HttpConfig(port=0, disable_access_log=True),
        multimodal=MultimodalConfig(enable_multimodal=True, cache_capacity=10, media_timeout=2.0),
        supervisor=SupervisorConfig(max_restarts=100),
    )
    with launch(msgspec.structs.replace(config, **changes)) as server:
        yield server.wait_ready(START)


def prompts(folder: str) -> list[dict[str, Any]]:
    """Golden prompts whose images are prepared as the configuration says (LLaVA's goldens also contain the other
    way)."""
    found = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]
    return [p for p in found if all(slot[3:] in ([], ["pad"]) for slot in p["image_slots"])]


def folded(prompt: dict[str, Any]) -> list[int]:
    """The golden ids with -200 in place of each image's slots."""
    ids, at = [], 0
    for start, end, *_ in prompt["image_slots"]:
        ids += [*prompt["input_ids"][at:start], IMAGE]
        at = end
    return ids + prompt["input_ids"][at:]


def base64_image(data: bytes) -> dict[str, str]:
    return {"type": "base64", "data": base64.b64encode(data).decode()}


def media(*data: bytes) -> dict[str, Any]:
    return {"images": [base64_image(one) for one in data]}


def golden_body(folder: str, prompt: dict[str, Any]) -> dict[str, Any]:
    files = [(GOLDENS / folder / "images" / f"{slot[2]}.png").read_bytes() for slot in prompt["image_slots"]]
    parameters = {"max_new_tokens": len(prompt["greedy_ids"]), "ignore_eos": True, "return_details": True}
    return {"inputs": folded(prompt), "parameters": parameters, "multimodal_params": media(*files)}


def ids(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["tokens"]]


def number(server: Server, name: str) -> float:
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"lightllm_{name}{{"))


def until_clean(server: Server, seconds: float = 20.0) -> None:
    """Wait until no image is leased, awaited or in work, and no file is kept."""
    until_idle(server)
    deadline = time.monotonic() + seconds
    names = ("image_cache_leased_items", "image_requests_waiting", "images_in_work", "image_file_bytes")
    while any(number(server, name) for name in names):
        assert time.monotonic() < deadline, {name: number(server, name) for name in names}
        time.sleep(0.05)


def names(prompt: dict[str, Any]) -> list[str]:
    return [slot[2] for slot in prompt["image_slots"]]


def refused(server: Server, body: dict[str, Any] | bytes, path: str = "/generate") -> tuple[int, str]:
    """The status and message of an error. Meanwhile /health is polled and must answer quickly."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    done = threading.Event()
    slowest: list[float] = []

    def look() -> None:
        while not done.is_set():
            begin = time.monotonic()
            get(server, "/health")
            slowest.append(time.monotonic() - begin)
            time.sleep(0.02)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        request = urllib.request.Request(server.base_url + path, data)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=15)
    finally:
        done.set()
        looking.join()
    assert sorted(slowest)[len(slowest) // 2] < 1.0  # a busy machine may delay a few
    assert max(slowest) < 5.0
    error = json.load(caught.value)["error"]
    return caught.value.code, error["message"]


def asking(*images: dict[str, Any], text: str = "<image> What?") -> dict[str, Any]:
    return {"inputs": text, "parameters": {"max_new_tokens": 3}, "multimodal_params": {"images": list(images)}}


def url(address: str) -> dict[str, Any]:
    return {"type": "url", "data": address}


GOOD = encoded(noise(), "PNG")


@contextlib.contextmanager
def tcp(answer: bytes, piece: int = 1 << 20, pause: float = 0.0) -> Iterator[int]:
    """A server that sends `answer` to every client, in pieces."""
    stop = threading.Event()

    def one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            for at in range(0, len(answer), piece):
                client.sendall(answer[at : at + piece])
                if stop.wait(pause):
                    return

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listening.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
