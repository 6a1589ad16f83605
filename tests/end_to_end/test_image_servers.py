"""Real servers with images: ranks, keys, what hostile clients get, and a visual actor that dies."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from served import START, get, post
from test_served_model import children, until_idle

from lightllm_mp import Config, Engine, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.vision.image_files import bomb, encoded, noise, png_of

GOLDENS = Path(__file__).parent.parent / "goldens"
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
    """Those whose images are prepared as the configuration says (LLaVA's goldens also hold the other way)."""
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
    """No image is leased, waited for or worked on, and no file is held."""
    until_idle(server)
    deadline = time.monotonic() + seconds
    names = ("image_cache_leased_items", "image_requests_waiting", "images_in_work", "image_file_bytes")
    while any(number(server, name) for name in names):
        assert time.monotonic() < deadline, {name: number(server, name) for name in names}
        time.sleep(0.05)


def _names(prompt: dict[str, Any]) -> list[str]:
    return [slot[2] for slot in prompt["image_slots"]]


def test_two_ranks_read_the_same_images() -> None:
    with serving(GOLDENS / "llava_hf", engine=EngineConfig(max_total_token_num=3000, threads=1, tp=2)) as server:
        for prompt in prompts("llava_hf"):
            assert ids(post(server, "/generate", golden_body("llava_hf", prompt))) == prompt["greedy_ids"]
        until_clean(server)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("place", ["cuda", "cpu"])
@pytest.mark.parametrize("folder", ["llava_hf", "llava_orig", "qwen_vl", "qwen2_5_vl"])
def test_golden_answers_on_a_gpu(folder: str, place: Any) -> None:
    model = ModelConfig(model_dir=str(GOLDENS / folder), data_type="float32", device="cuda")
    images = MultimodalConfig(enable_multimodal=True, cache_capacity=10, visual_device=place)
    with serving(GOLDENS / folder, model=model, multimodal=images) as server:
        for prompt in prompts(folder) * 2:
            assert ids(post(server, "/generate", golden_body(folder, prompt))) == prompt["greedy_ids"]
        until_clean(server)


def test_waiting_requests_survive_the_visual_actor() -> None:
    folder = "qwen2_5_vl"
    with serving(GOLDENS / folder) as server:
        bodies = [golden_body(folder, prompt) for prompt in prompts(folder)]
        wanted = [prompt["greedy_ids"] for prompt in prompts(folder)]
        with ThreadPoolExecutor(32) as pool:
            answers = [pool.submit(post, server, "/generate", body) for body in bodies * 4]
            time.sleep(0.05)
            os.kill(children(server)["visual"], signal.SIGKILL)
            assert [ids(answer.result()) for answer in answers] == wanted * 4
        until_clean(server)


# --- text prompts, hostile clients ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny LLaVA whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("llava")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(GOLDENS / "llava_hf" / file, folder)
    write_byte_tokenizer(folder)
    with serving(folder) as server:
        yield server


def refused(server: Server, body: dict[str, Any] | bytes, path: str = "/generate") -> tuple[int, str]:
    """Status and message of an error. Health is looked at all the while, and has to be quick."""
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
    assert max(slowest) < 1.0
    error = json.load(caught.value)["error"]
    return caught.value.code, error["message"]


def asking(*images: dict[str, Any], text: str = "<image> What?") -> dict[str, Any]:
    return {"inputs": text, "parameters": {"max_new_tokens": 3}, "multimodal_params": {"images": list(images)}}


def url(address: str) -> dict[str, Any]:
    return {"type": "url", "data": address}


GOOD = encoded(noise(), "PNG")


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
    """Open ones of each actor, and how many decoder processes there are."""
    actors = children(server)
    found = {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in actors.items()}
    visual = actors["visual"]
    return found | {"decoders": len(Path(f"/proc/{visual}/task/{visual}/children").read_text().split())}


def test_hostile_images_leave_nothing(llava: Server) -> None:
    """The whole list again and again, good images among them."""
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
        time.sleep(0.1)  # connections are closed a moment after their answers
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
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
        assert b" 413 " in client.recv(4096).split(b"\r\n")[0]
    assert refused(llava, asking({"type": "base64", "data": "A" * (33 << 20)}))[0] == 413


@contextlib.contextmanager
def tcp(answer: bytes, piece: int = 1 << 20, pause: float = 0.0) -> Iterator[int]:
    """A server that sends `answer` to everybody, in pieces."""
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


def test_urls_of_an_allowed_host() -> None:
    multimodal = MultimodalConfig(
        enable_multimodal=True, cache_capacity=10, media_timeout=2.0, allow_media_host=("127.0.0.1",)
    )
    prompt = next(p for p in prompts("llava_hf") if len(p["image_slots"]) == 1)
    body = golden_body("llava_hf", prompt)
    file = (GOLDENS / "llava_hf" / "images" / f"{prompt['image_slots'][0][2]}.png").read_bytes()

    def asked(port: int, path: str = "") -> dict[str, Any]:
        return body | {"multimodal_params": {"images": [url(f"http://127.0.0.1:{port}/{path}")]}}

    with serving(GOLDENS / "llava_hf", multimodal=multimodal) as server:
        with tcp(http(file)) as port:
            assert ids(post(server, "/generate", asked(port))) == prompt["greedy_ids"]
            with tcp(http(b"", "302 Found", f"Location: http://127.0.0.1:{port}/")) as other:
                assert ids(post(server, "/generate", asked(other))) == prompt["greedy_ids"]
        assert ids(post(server, "/generate", body)) == prompt["greedy_ids"]
        assert number(server, "images_encoded_total") == 1  # by URL or in base64, it is one image
        assert number(server, "image_fetch_time_seconds_count") == 2
        assert 0 < number(server, "image_fetch_time_seconds_sum") < 4
        assert number(server, "image_requests_embedded_total") == 3
        assert number(server, "image_wait_seconds_total") > 0
        with tcp(http(file), piece=1, pause=1.0) as port:
            begin = time.monotonic()
            assert refused(server, asked(port)) == (400, "an image was not fetched within 2 s")
            assert time.monotonic() - begin < 5
        with tcp(http(b"", "302 Found", "Location: http://10.0.0.1/x.png")) as port:
            assert refused(server, asked(port))[0] == 400
        with tcp(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (64 << 20)) as port:
            assert refused(server, asked(port))[0] == 413
        assert refused(server, asked(port)) == (400, "an image could not be fetched")  # closed by now
        until_clean(server)


def test_nothing_is_shared_between_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    prompt = next(p for p in prompts("llava_hf") if len(p["image_slots"]) == 1)
    body = json.dumps(golden_body("llava_hf", prompt)).encode()
    settings = HttpConfig(port=0, disable_access_log=True, api_key_file=str(file))
    with serving(GOLDENS / "llava_hf", http=settings) as server:

        def ask(path: str, key: str, data: bytes | None = None) -> bytes:
            headers = {"Authorization": f"Bearer {key}"}
            with urllib.request.urlopen(urllib.request.Request(server.base_url + path, data, headers)) as reply:
                return reply.read()

        answers = [json.loads(ask("/generate", key, body)) for key in ("one", "two", "one", "two")]
        assert [ids(answer) for answer in answers] == [prompt["greedy_ids"]] * 4
        before = prompt["image_slots"][0][0]
        assert answers[1]["cached_tokens"] <= before < answers[2]["cached_tokens"]
        assert 'lightllm_images_encoded_total{model_name="llava_hf"} 2.0' in ask("/metrics", "one").decode()


def test_the_offline_engine_takes_images() -> None:
    chosen = prompts("llava_hf")
    config = Config(
        model=ModelConfig(model_dir=str(GOLDENS / "llava_hf"), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=3000, threads=1),
        multimodal=MultimodalConfig(enable_multimodal=True),
    )
    files = [[(GOLDENS / "llava_hf" / "images" / f"{name}.png").read_bytes() for name in _names(p)] for p in chosen]
    with Engine(config) as engine:
        found = engine.generate([folded(p) for p in chosen], images=files, max_new_tokens=24, ignore_eos=True)
        assert [answer.token_ids for answer in found] == [p["greedy_ids"] for p in chosen]


def test_a_model_without_a_tower_serves_text() -> None:
    with serving(GOLDENS / "llama") as server:
        assert "visual" not in children(server)
        body = {"inputs": [5, 6], "parameters": {"max_new_tokens": 2}}
        assert post(server, "/generate", body)["finish_reason"]
        code, message = refused(server, body | {"multimodal_params": media(GOOD)})
        assert code == 400
        assert "text only" in message
