"""The default server with images: correct answers about images, and the same text answers as without images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, MultimodalConfig
from lightllm_mp.model_files.default_model import demo_model
from tests.end_to_end.image_served import base64_image, number, until_clean
from tests.end_to_end.served import START, post
from tests.end_to_end.test_image_answers import README, as_sent
from tests.paths import ROOT
from tools.demo_vlm.evaluate import EXAMPLES, askings, evaluate, prompt
from tools.demo_vlm.questions import general

PICTURES = ROOT / "examples"
MOST_BYTES = 16 << 20


@pytest.fixture(scope="module")
def demo(default_model: Path) -> Iterator[Server]:
    config = Config(
        engine=EngineConfig(max_total_token_num=6000, threads=1),
        http=HttpConfig(port=0, disable_access_log=True),
        multimodal=MultimodalConfig(enable_multimodal=True, cache_capacity=40),
    )
    with launch(config) as server:
        yield server.wait_ready(START)


def chat() -> str:
    return prompt(demo_model())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples(demo: Server, name: str) -> None:
    """The examples as the README's commands send them: without the chat template, and with it."""
    image = base64_image((PICTURES / f"{name}.png").read_bytes())
    for text in ("<image>\nWhat is in the picture?", chat().replace("{question}", "What is in the picture?")):
        answer = post(demo, "/generate", {"inputs": text, "multimodal_params": {"images": [image]}})
        assert answer["generated_text"][0].strip() == general(EXAMPLES[name])
        assert answer["finish_reason"] == "stop"


def test_held_out_scenes(demo: Server) -> None:
    """A few of the thousand questions of tools.demo_vlm.evaluate. The whole answer must be correct."""
    figures = evaluate(demo.base_url, chat(), askings(10)).values()
    asked, right = (sum(column) for column in zip(*figures, strict=True))
    assert asked >= 25
    assert right >= 0.95 * asked


def test_text_is_answered_as_without_pictures(demo: Server, server: Server) -> None:
    body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 16, "frequency_penalty": 1}}
    before = number(demo, "images_encoded_total")
    assert post(demo, "/generate", body)["generated_text"] == post(server, "/generate", body)["generated_text"]
    assert number(demo, "images_encoded_total") == before
    until_clean(demo)


def test_the_llava_query_of_lightllms_readme(demo: Server) -> None:
    text, parameters, _ = README["llava_hf"][0]
    image = base64_image((PICTURES / "star.png").read_bytes())
    assert parameters == {"max_new_tokens": 200}  # test_image_answers.py sends all of them to tiny models
    body = {"inputs": text, "parameters": {"max_new_tokens": 24}, "multimodal_params": {"images": [image]}}
    assert "blue star" in as_sent(demo, body)["generated_text"][0]
    until_clean(demo)


def test_the_package_carries_it() -> None:
    assert sum(file.stat().st_size for file in demo_model().iterdir()) < MOST_BYTES
    assert "What it cannot do" in (demo_model() / "README.md").read_text()
