"""A server of Qwen3-VL: several images, and videos as lists of frames and as files, in its own API and in chats."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest

from lightllm_mp import Server
from lightllm_mp.vision.video.video_decode import sample_video
from tests.actors.embedded import write_byte_tokenizer
from tests.end_to_end.image_served import (
    GOLDENS,
    base64_image,
    golden_body,
    ids,
    number,
    prompts,
    refused,
    serving,
    until_clean,
)
from tests.end_to_end.served import post
from tests.end_to_end.test_served_model import children
from tests.vision.video_files import frame_files, mp4_index, write_video_config

FOLDER = "qwen3_vl"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endfor %}"
)
"""A chat template that writes images and videos like that of Qwen3-VL."""
OF_TRANSFORMERS = [154, 54, 33, 134, 80, 54, 33, 134]
"""The ids that Qwen3VLForConditionalGeneration of transformers 5.24 generates for the five frames below."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_byte_tokenizer(shutil.copytree(GOLDENS / FOLDER, tmp_path_factory.mktemp("models") / FOLDER))
    write_video_config(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with serving(folder) as server:
        yield server


def generated(server: Server, text: str, **media: Any) -> dict[str, Any]:
    parameters = {"max_new_tokens": 8, "ignore_eos": True, "return_details": True}
    return post(server, "/generate", {"inputs": text, "parameters": parameters, "multimodal_params": media})


def chatted(server: Server, *parts: dict[str, Any] | str) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return post(server, "/v1/chat/completions", {"model": "any", **asked})


def same(chat: dict[str, Any], native: dict[str, Any]) -> None:
    assert chat["choices"][0]["message"]["content"] == native["generated_text"][0]
    assert chat["usage"]["prompt_tokens"] == native["prompt_tokens"]


def address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def frames() -> dict[str, Any]:
    return {"type": "frames", "data": [base64_image(file) for file in frame_files(5)], "fps": 2.0}


def test_golden_images(server: Server) -> None:
    """Several images in a prompt, one of them twice. The second time the prefixes are cached."""
    asked = [prompt for prompt in prompts(FOLDER) if len(prompt["image_slots"]) > 1]
    assert len(asked) > 1
    for _ in range(2):
        answers = [post(server, "/generate", golden_body(FOLDER, prompt)) for prompt in asked]
        assert [ids(answer) for answer in answers] == [prompt["greedy_ids"] for prompt in asked]
    assert answers[0]["cached_tokens"] == asked[0]["length"] - 1
    until_clean(server)


def test_a_killed_worker_and_visual_actor(server: Server) -> None:
    """Running requests read the planes of their images again, from the cache or from a new encoding."""
    asked = [prompt for prompt in prompts(FOLDER) if prompt["image_slots"]]
    bodies = [golden_body(FOLDER, prompt) for prompt in asked] * 3
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [pool.submit(post, server, "/generate", body) for body in bodies]
        time.sleep(0.05)
        for name in ("worker0", "visual"):
            os.kill(children(server)[name], signal.SIGKILL)
        assert [ids(answer.result()) for answer in answers] == [prompt["greedy_ids"] for prompt in asked] * 3
    until_clean(server)


def test_images_in_a_chat(server: Server) -> None:
    files = [(GOLDENS / FOLDER / "images" / f"{name}.png").read_bytes() for name in ("sq_a", "wide")]
    native = generated(server, f"A {IMAGE} or {IMAGE}?", images=[base64_image(file) for file in files])
    first, second = ({"type": "image_url", "image_url": {"url": address(file, "image/png")}} for file in files)
    same(chatted(server, "A ", first, " or ", second, "?"), native)


def test_a_video_of_frames(server: Server) -> None:
    before = number(server, "images_encoded_total")
    native = generated(server, f"What {VIDEO} moves?", videos=[frames()])
    assert ids(native) == OF_TRANSFORMERS
    again = generated(server, f"What {VIDEO} moves?", videos=[frames()])
    assert ids(again) == OF_TRANSFORMERS
    assert again["cached_tokens"] == native["prompt_tokens"] - 1
    video = {"type": "video", "video": [address(file, "image/png") for file in frame_files(5)], "fps": 2}
    same(chatted(server, "What ", video, " moves?"), native)
    joined = "data:video/jpeg;base64," + ",".join(base64.b64encode(file).decode() for file in frame_files(5))
    same(chatted(server, "What ", {"type": "video_url", "video_url": {"url": joined}}, " moves?"), native)
    assert number(server, "images_encoded_total") == before + 1
    until_clean(server)


def test_a_video_beside_an_image(server: Server) -> None:
    """Each tag takes the next item of its kind, in any order of the lists."""
    file = (GOLDENS / FOLDER / "images" / "tall.png").read_bytes()
    native = generated(server, f"{VIDEO}{IMAGE}?", images=[base64_image(file)], videos=[frames()])
    video = {"type": "video", "video": [address(one, "image/png") for one in frame_files(5)], "fps": 2}
    same(chatted(server, video, {"type": "image_url", "image_url": address(file, "image/png")}, "?"), native)


@pytest.mark.skipif(not find_spec("av"), reason="PyAV is not installed")
def test_a_video_file(server: Server) -> None:
    """The confined decoder opens the file. It has 8 frames of half a second, and the model sees all of them."""
    data = sample_video()
    native = generated(server, f"{VIDEO} What?", videos=[base64_image(data)])
    same(chatted(server, {"type": "video_url", "video_url": {"url": address(data, "video/mp4")}}, " What?"), native)
    counted = post(server, "/tokens", {"text": f"{VIDEO} What?", "multimodal_params": {"videos": [base64_image(data)]}})
    assert counted["ntokens"] == native["prompt_tokens"] == len(" What?") + 4 * (len("<0.2 seconds>") + 2 + 4)
    status, said = refused(server, {"inputs": VIDEO, "multimodal_params": {"videos": [base64_image(mp4_index())]}})
    assert (status, said) == (400, "a video is damaged or cut off")
    until_clean(server)


def test_videos_that_are_refused(server: Server) -> None:
    for video, status, said in (
        ({"type": "base64", "data": "AAAA"}, 415, "in none of the formats MP4, MOV"),
        ({"type": "frames", "data": []}, 400, "cut off or empty"),
        ({"type": "frames", "data": [base64_image(frame_files(1)[0])]}, 400, "has 1 frames; it needs at least 2"),
        ({"type": "frames", "data": [{"type": "image_size", "data": [8, 8]}] * 2}, 400, "needs its data as text"),
        ({"type": "frames", "data": [base64_image(b"text")] * 2}, 415, "none of the formats PNG"),
        ({**frames(), "fps": 0}, 400, "fps"),
        ({"type": "tape"}, 400, "type"),
    ):
        found = refused(server, {"inputs": VIDEO, "multimodal_params": {"videos": [video]}})
        assert found[0] == status, found
        assert said in found[1]
    found = refused(server, {"inputs": "no tag", "multimodal_params": {"videos": [frames()]}})
    assert found[0] == 400
    assert "0 places for videos" in found[1]
    for url, said in (
        ("data:video/mp4,raw", "must be base64"),
        ("data:video/jpeg;base64," + "," * 1000, "768"),
    ):
        message = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
        found = refused(server, {"model": "any", "messages": [message]}, "/v1/chat/completions")
        assert found[0] == 400
        assert said in found[1], found
    until_clean(server)
