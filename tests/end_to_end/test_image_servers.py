"""Real servers with images: ranks, a visual actor that dies, URLs, keys, and an engine without a port."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lightllm_mp import Config, Engine
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig
from tests.end_to_end.image_served import (
    GOLDENS,
    GOOD,
    folded,
    golden_body,
    http,
    ids,
    media,
    names,
    number,
    prompts,
    refused,
    serving,
    tcp,
    until_clean,
    url,
)
from tests.end_to_end.served import post
from tests.end_to_end.test_served_model import children


def test_two_ranks_read_the_same_images() -> None:
    with serving(GOLDENS / "llava_hf", engine=EngineConfig(max_total_token_num=3000, threads=1, tp=2)) as server:
        for prompt in prompts("llava_hf"):
            assert ids(post(server, "/generate", golden_body("llava_hf", prompt))) == prompt["greedy_ids"]
        until_clean(server)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("place", ["cuda", "cpu"])
@pytest.mark.parametrize("folder", ["llava_hf", "llava_orig", "qwen_vl", "qwen2_5_vl", "qwen3_vl"])
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
        assert number(server, "images_encoded_total") == 1  # the same image by URL and in base64
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
        assert refused(server, asked(port)) == (400, "an image could not be fetched")  # its host is closed by now
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
    files = [[(GOLDENS / "llava_hf" / "images" / f"{name}.png").read_bytes() for name in names(p)] for p in chosen]
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
