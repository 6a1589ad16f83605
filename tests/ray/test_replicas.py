"""Replicas on Ray: requests go on when an engine's process, or a whole replica, dies. One cluster for all tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp import launch
from lightllm_mp.config import Config, EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.paths import GOLDENS

ray = pytest.importorskip("ray", reason="needs Ray (pip install 'lightllm-mp[ray]')")
from ray import serve  # noqa: E402

from lightllm_mp.ray import build_app  # noqa: E402
from lightllm_mp.ray.directory import DirectoryClient  # noqa: E402

PORT = 18341
RELAY_KEY = "of-the-fronts-of-this-test"
ASKED = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 400, "ignore_eos": True}}
START = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = shutil.copytree(GOLDENS / "llama", tmp_path_factory.mktemp("fleet") / "llama")
    return str(write_byte_tokenizer(folder))


def settings(model: str, kv_tokens: int = 4000) -> Config:
    return Config(
        model=ModelConfig(model_dir=model, device="cpu"),
        engine=EngineConfig(max_total_token_num=kv_tokens, threads=1),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100),
    )


@pytest.fixture(scope="module")
def whole(model: str) -> str:
    """What one engine says alone."""
    with launch(settings(model)) as server:
        server.wait_ready(START)
        return "".join(event["token"]["text"] for event in server.stream(ASKED))


@pytest.fixture(scope="module")
def fleet(model: str) -> Iterator[None]:
    ray.init(num_cpus=4, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        deploy(settings(model), 2)
        settle(lambda: len(engines()) == 2)
        yield
        before = set(engines().values())
        serve.delete("lightllm_mp")
        settle(lambda: not any(is_alive(pid) for pid in before))
        DirectoryClient("lightllm_mp").end()
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(config: Config, replicas: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTLLM_MP_RELAY_KEYS", RELAY_KEY)
        app = build_app({"flags": config, "replicas": replicas, "host": "127.0.0.1", "cpus": 0.3})
    serve.run(app, name="lightllm_mp")


def settle(condition: Callable[[], bool], seconds: float = START) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.2)


def engines() -> dict[int, int]:
    """The process of each replica -> the supervisor of its engine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:lightllm_mp:replica"):
                found |= {int(folder.name): pid for pid in children(int(folder.name)) if is_engine(pid)}
    return found


def is_engine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"lightllm_mp.server import _child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children(pid: int) -> list[int]:
    """Those of all its threads."""
    lists = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for text in lists for child in text.split()]


def ask(path: str, body: Any, **headers: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=START)


def stream(found: list[str], path: str = "/generate_stream") -> None:
    with ask(path, ASKED) as answer:
        for line in answer:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                found.append(event["token"]["text"] if "token" in event else str(event))


def streams(count: int) -> tuple[list[threading.Thread], list[list[str]]]:
    found: list[list[str]] = [[] for _ in range(count)]
    threads = [threading.Thread(target=stream, args=(one,)) for one in found]
    for thread in threads:
        thread.start()
    settle(lambda: all(len(one) > 5 for one in found), 60)
    return threads, found


@pytest.mark.usefixtures("fleet")
class TestFleet:
    def test_every_api_is_there(self, whole: str) -> None:
        with ask("/generate", ASKED) as answer:
            assert json.load(answer)["generated_text"] == [whole]
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models") as answer:
            assert json.load(answer)["data"]
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health") as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("/generate", {"inputs": 7})
        assert refused.value.code == 400
        assert "error" in json.load(refused.value)

    def test_a_process_of_an_engine_dies(self, whole: str) -> None:
        before = engines()
        threads, found = streams(4)
        for pid in before.values():
            os.kill(children(pid)[0], signal.SIGKILL)
        for thread in threads:
            thread.join(START)
        assert ["".join(one) for one in found] == [whole] * 4
        assert engines() == before  # Serve has replaced nothing

    def test_a_whole_replica_dies(self, whole: str) -> None:
        threads, found = streams(4)
        replica, engine = next(iter(engines().items()))
        os.kill(replica, signal.SIGKILL)
        for thread in threads:
            thread.join(START)
        assert ["".join(one) for one in found] == [whole] * 4
        settle(lambda: len(engines()) == 2 and not is_alive(engine))

    def test_a_smaller_fleet_ends_what_it_has_begun(self, model: str, whole: str) -> None:
        threads, found = streams(4)
        deploy(settings(model), 1)
        for thread in threads:
            thread.join(START)
        assert ["".join(one) for one in found] == [whole] * 4
        settle(lambda: len(engines()) == 1)

    def test_a_rolling_update_loses_nothing(self, model: str, whole: str) -> None:
        before = engines()
        threads, found = streams(4)
        deploy(settings(model, kv_tokens=5000), 2)
        for thread in threads:
            thread.join(START)
        assert ["".join(one) for one in found] == [whole] * 4
        settle(lambda: len(engines()) == 2 and not set(engines()) & set(before))
        with ask("/generate", ASKED) as answer:
            assert json.load(answer)["generated_text"] == [whole]
