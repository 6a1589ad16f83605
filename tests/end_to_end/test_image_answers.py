"""Servers of every family with images return the golden ids, for token ids and for text with image tags."""

from __future__ import annotations

import base64
import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer

from lightllm_mp import Server
from lightllm_mp.config import MultimodalConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.end_to_end.image_served import (
    GOLDENS,
    IMAGE,
    base64_image,
    golden_body,
    http,
    ids,
    names,
    number,
    prompts,
    serving,
    tcp,
    until_clean,
    url,
)
from tests.end_to_end.served import post, stream


class Family(NamedTuple):
    """A server of a golden folder. `tag`: marks an image in a text. `around`: the family's ids before and after its
    slots."""

    folder: str
    server: Server
    tokenizer: Tokenizer
    tag: str
    around: tuple[list[int], list[int]]

    def picture(self, name: str) -> bytes:
        return (GOLDENS / self.folder / "images" / f"{name}.png").read_bytes()

    def ids_of(self, *parts: str | int) -> list[int]:
        """Ids of the bytes of texts; an IMAGE gets the family's ids around it."""
        before, after = self.around
        pieces = [
            [*before, IMAGE, *after] if isinstance(part, int) else self.tokenizer.encode(part).ids for part in parts
        ]
        return [id_ for piece in pieces for id_ in piece]

    def answer(self, prompt: str | list[int], *images: str, tokens: int = 8) -> dict[str, Any]:
        parameters = {"max_new_tokens": tokens, "ignore_eos": True, "return_details": True}
        media = {"images": [base64_image(self.picture(name)) for name in images]}
        return post(self.server, "/generate", {"inputs": prompt, "parameters": parameters, "multimodal_params": media})


TAGS = {
    "llava_hf": ("<image>", ([], [])),
    "llava_orig": ("<image>", ([], [])),
    "qwen_vl": ("<img></img>", ([300], [301])),
}


@pytest.fixture(scope="module", params=["llava_hf", "llava_orig", "qwen_vl", "qwen2_5_vl"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A server of the golden checkpoint with a tokenizer of bytes. It may fetch images from the loopback address."""
    name, place = request.param, tmp_path_factory.mktemp("models")
    folder = shutil.copytree(GOLDENS / name, place / name)
    shutil.copytree(GOLDENS / "clip-vit-large-patch14-56", place / "clip-vit-large-patch14-56")
    write_byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    ends = ([config.get("vision_start_token_id")], [config.get("vision_end_token_id")])
    tag, around = TAGS.get(name, ("<|vision_start|><|image_pad|><|vision_end|>", ends))
    multimodal = MultimodalConfig(enable_multimodal=True, cache_capacity=10, allow_media_host=("127.0.0.1",))
    with serving(folder, multimodal=multimodal) as server:
        yield Family(name, server, tokenizer, tag, around)


def test_golden_answers(family: Family) -> None:
    folder, server = family.folder, family.server
    before = number(server, "images_encoded_total")
    bodies = [golden_body(folder, prompt) for prompt in prompts(folder)]
    wanted = [prompt["greedy_ids"] for prompt in prompts(folder)]
    for _ in range(2):  # the second time images and prefixes are cached
        assert [ids(post(server, "/generate", body)) for body in bodies] == wanted
    with ThreadPoolExecutor(16) as pool:  # in one mixed batch
        assert [ids(a) for a in pool.map(lambda body: post(server, "/generate", body), bodies * 4)] == wanted * 4
    images = {image for prompt in prompts(folder) for image in names(prompt)}
    assert number(server, "images_encoded_total") - before == len(images)
    until_clean(server)


def announced(family: Family, k: int) -> str:
    """LightLLM's tags for Qwen-VL have numbers."""
    return f"Picture {k}:" if family.folder == "qwen_vl" else ""


def test_text_with_tags_is_what_its_ids_are(family: Family) -> None:
    """Prompts with no image, one, two, and the same twice. A second round reads the images from the cache."""
    tag, line = family.tag, "\n" if family.folder == "qwen_vl" else ""
    first, second = announced(family, 1), announced(family, 2)
    for text, parts, images in (
        ("What is AI?", ("What is AI?",), ()),
        (f"See {tag}this?", ("See " + first, IMAGE, line + "this?"), ("wide",)),
        (f"{tag} and {tag}", (first, IMAGE, line + " and " + second, IMAGE, line), ("sq_a", "tall")),
        (f"{tag}, {tag}?", (first, IMAGE, line + ", " + second, IMAGE, line + "?"), ("sq_b", "sq_b")),
    ):
        given, spelled = family.answer(text, *images), family.answer(family.ids_of(*parts), *images)
        assert ids(given) == ids(spelled)
        assert given["prompt_tokens"] == spelled["prompt_tokens"] > len(family.ids_of(*parts)) - 1
    before = number(family.server, "images_encoded_total")
    round_two = family.answer(f"See {tag}this? A picture.\nWhat colour?", "wide")
    image = (
        round_two["prompt_tokens"]
        - len(family.ids_of("See " + first, IMAGE, line + "this? A picture.\nWhat colour?"))
        + 1
    )
    assert round_two["cached_tokens"] > image
    assert number(family.server, "images_encoded_total") == before
    until_clean(family.server)


CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<img></img>\n<img></img>\n"
    "上面两张图片分别是哪两个城市？请对它们进行对比。<|im_end|>\n<|im_start|>assistant\n"
    "根据提供的信息，两张图片分别是重庆和北京。<|im_end|>\n<|im_start|>user\n这两座城市分别在什么地方？<|im_end|>\n"
    "<|im_start|>assistant\n"
)
VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: <image>\nPlease explain the picture. ASSISTANT:"
)
CAPTION = "<img></img>Generate the caption in English with grounding:"
README: dict[str, list[tuple[str, dict[str, Any], int]]] = {
    "qwen_vl": [
        (CAPTION, {"max_new_tokens": 200, "stop_sequences": [" <|endoftext|>"]}, 1),
        (CHAT, {"max_new_tokens": 200, "stop_sequences": [" <|endoftext|>", " <|im_start|>", " <|im_end|>"]}, 2),
    ],
    "llava_hf": [(VICUNA, {"max_new_tokens": 200}, 1)],
    "llava_orig": [(VICUNA, {"max_new_tokens": 200}, 1)],
}
"""The requests of LightLLM's README: prompt, parameters, number of images."""


def as_sent(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request as LightLLM's Python examples do: JSON with this one header."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.base_url + "/generate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.status == 200
        return json.load(reply)


def test_the_queries_of_lightllms_readme(family: Family) -> None:
    """An image as a file in base64 and as a URL; both are the same image."""
    for prompt, parameters, count in README.get(family.folder, []):
        files = [family.picture(name) for name in ("sq_a", "wide")[:count]]
        encoded = [{"type": "base64", "data": base64.b64encode(file).decode("utf-8")} for file in files]
        body = {"inputs": prompt, "parameters": parameters, "multimodal_params": {"images": encoded}}
        answer = as_sent(family.server, body)
        assert list(map(type, answer["generated_text"])) == [str]
        assert 1 <= answer["count_output_tokens"] <= 200
        before = number(family.server, "images_encoded_total")
        with tcp(http(files[0])) as one, tcp(http(files[-1])) as two:
            linked = [url(f"http://127.0.0.1:{port}/picture.png") for port in (one, two)[:count]]
            assert as_sent(family.server, body | {"multimodal_params": {"images": linked}}) == answer
        assert number(family.server, "images_encoded_total") == before
        events = stream(family.server, body)
        assert "".join(event["token"]["text"] for event in events) == answer["generated_text"][0]
        assert events[-1]["finished"]
    until_clean(family.server)
