"""A fleet grows with the tokens that it has to compute, and shrinks without the loss of a stream. One cluster."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightllm_mp.config import Config, EngineConfig, HttpConfig, ModelConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.paths import GOLDENS
from tests.replicas.test_autoscaling import Context

ray = pytest.importorskip("ray", reason="needs Ray (pip install 'lightllm-mp[ray]')")
from ray import serve  # noqa: E402
from ray.serve.config import AutoscalingPolicy  # noqa: E402

from lightllm_mp.ray import build_app  # noqa: E402
from lightllm_mp.ray.directory import DirectoryClient  # noqa: E402
from lightllm_mp.replicas.autoscaling import TOKENS, TokenPolicy  # noqa: E402

PORT, APPLICATION = 18347, "scaling"
ASKED = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 400, "ignore_eos": True}}


@pytest.fixture
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        ray.init(num_cpus=4, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            yield
            serve.delete(APPLICATION)
            DirectoryClient(APPLICATION).end()
        finally:
            serve.shutdown()
            ray.shutdown()


def replicas() -> dict[str, int]:
    return dict(serve.status().applications[APPLICATION].deployments["replica"].replica_states)


def settle(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, replicas()
        time.sleep(0.2)


def stream() -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/generate_stream", json.dumps(ASKED).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        events = [json.loads(line[5:]) for line in answer if line.startswith(b"data:")]
    return "".join(event["token"]["text"] for event in events)


def test_serve_can_call_the_policy():
    policy = AutoscalingPolicy(policy_function=TokenPolicy, policy_kwargs={"target_tokens": 50.0})
    made = policy.get_policy()(**policy.policy_kwargs)
    assert made(Context(1, {TOKENS: {"a": 120.0}})) == (3, {})


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_a_fleet_follows_its_work(tmp_path: Path):
    model = write_byte_tokenizer(shutil.copytree(GOLDENS / "llama", tmp_path / "llama"))
    config = Config(
        model=ModelConfig(model_dir=str(model), device="cpu"),
        engine=EngineConfig(max_total_token_num=8000, threads=1),
        http=HttpConfig(port=0, disable_access_log=True),
    )
    scale = {"min_replicas": 1, "max_replicas": 2, "target_tokens": 300, "upscale_delay": 0, "downscale_delay": 1}
    app = build_app({"flags": config, "application": APPLICATION, "host": "127.0.0.1", "cpus": 0.3, **scale})
    serve.run(app, name=APPLICATION)
    assert replicas() == {"RUNNING": 1}
    whole, ended, wrong = stream(), threading.Event(), list[str]()

    def work() -> None:
        while not ended.is_set():
            if (text := stream()) != whole:
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        settle(lambda: replicas().get("RUNNING") == 2, 90)
        for thread in threads[1:]:
            ended.set()
            thread.join(120)
        threads[0].join(120)
        ended.clear()
        threads[0] = threading.Thread(target=work)  # one request alone is less than the target of a replica
        threads[0].start()
        settle(lambda: replicas() == {"RUNNING": 1}, 120)
    finally:
        ended.set()
        threads[0].join(120)
    assert wrong == []
