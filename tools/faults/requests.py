"""The mixed load of chaos: requests of every kind, with text and with images."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from typing import Any

from tests.vision.image_files import encoded, noise, png_of

Body = dict[str, Any]
SAMPLED: Body = {"do_sample": True, "temperature": 0.8}
PICTURES = 8
"""Number of different valid images."""
CACHED = 5
"""The capacity of the server's image cache: fewer than the number of images, so that it evicts some."""
PLACE = -200
"""The id of an image in a prompt of ids."""
TAG = "<image>"


@dataclass(frozen=True)
class Load:
    """Sizes of requests: small for a real model, large where tokens cost nothing."""

    tokens: tuple[int, int]
    """Least and most tokens of an answer."""
    sentences: int
    """Tokens of a long prompt."""
    too_long: int
    """Repetitions that give more tokens than fit, but few enough characters that the tokenizer still counts them."""
    images: bool = False
    embeds: bool = False
    """The model gives rows of numbers and no text."""


@dataclass(frozen=True)
class Case:
    """A request. `leave_after`: the client leaves after this many seconds (whole) or events (stream)."""

    kind: str
    path: str
    body: Body
    leave_after: float | None = None
    refused: bool = False
    """Whether the server refuses it with 4xx."""
    resumable: bool = True
    """Whether a client can resume the answer after a broken connection; else it sends the request again."""

    @property
    def streams(self) -> bool:
        return self.path == "/generate_stream" or bool(self.body.get("stream"))


def texts(seed: int, load: Load) -> list[Case]:
    """Requests of every kind without images."""
    rng = random.Random(seed)
    found: list[Case] = []

    def add(
        kind: str,
        *,
        stream: bool,
        prompt: str | None = None,
        leave: float | None = None,
        refused: bool = False,
        **more: Any,
    ) -> None:
        number = len(found)
        inputs = prompt or _chat(f"Tell me a fact about the number {rng.randrange(1000)}.")
        parameters = {"max_new_tokens": rng.randint(*load.tokens), "ignore_eos": True, "seed": number, **more}
        path = "/generate_stream" if stream else "/generate"
        found.append(Case(kind, path, {"inputs": inputs, "parameters": parameters}, leave, refused))

    words = " ".join(f"{n} is a number." for n in range(load.sentences))
    for turn in range(2):
        for stream in (True, False):
            add("greedy", stream=stream)
            add("seeded", stream=stream, **SAMPLED)
            add("long prompt", stream=stream, prompt=f"{turn}{stream} {words}")
            add("logprobs", stream=stream, logprobs=3, return_details=True)
        add("n", stream=False, n=3, **SAMPLED)
        add("prompt logprobs", stream=False, prompt_logprobs=1)
        add("one token", stream=bool(turn), max_new_tokens=1)
        add("leaves", stream=True, leave=rng.randint(0, 8))
        add("leaves", stream=False, leave=rng.random() / 4)
        far = "far too long " * (load.too_long if turn else 20_000)
        add("too long", stream=bool(turn), prompt=far, refused=True)
    found.append(Case("count", "/tokens", {"text": words}, resumable=False))
    return found


def _chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def with_stop(case: Case, text: str) -> Case:
    """The same request with a stop string from the middle of its answer, which is `text`."""
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    parameters = {**case.body["parameters"], "stop_sequences": [stop]}
    return Case("stop string", case.path, {**case.body, "parameters": parameters})


def pictures() -> list[bytes]:
    """Files of several sizes and formats, all different."""
    formats = ("PNG", "JPEG", "WEBP", "BMP")
    return [encoded(noise(24 + 7 * n, 60 - 5 * n), formats[n % len(formats)]) for n in range(PICTURES)]


def broken() -> dict[str, bytes]:
    """{kind: file} of refused files: by the header, by the decoder, for the size."""
    good = encoded(noise(), "PNG")
    return {
        "no image": b"hello" * 100,
        "cut image": good[:-300],
        "damaged image": png_of(400, 400, bytes(3000)),
        "bomb": png_of(30_000, 30_000, bytes(3000)),
    }


def images(seed: int, load: Load) -> list[Case]:
    """Requests of every kind with images."""
    rng = random.Random(f"{seed} images")
    files = pictures()
    found: list[Case] = []

    def add(
        kind: str,
        *which: bytes,
        stream: bool,
        ids: bool = False,
        leave: float | None = None,
        refused: bool = False,
        after: str = "What is this?",
        **more: Any,
    ) -> None:
        parameters = {"max_new_tokens": rng.randint(*load.tokens), "ignore_eos": True, "seed": len(found), **more}
        prompt: str | list[int] = f"{len(found)} " + f"{TAG} and " * len(which) + after
        if ids:
            prompt = [*range(3, 9), *(id for n in range(len(which)) for id in (PLACE, 20 + n)), 10, len(found)]
        body = {"inputs": prompt, "parameters": parameters, "multimodal_params": media(*which)}
        found.append(Case(kind, "/generate_stream" if stream else "/generate", body, leave, refused))

    for turn in range(2):
        for stream in (True, False):
            add("image", files[2 * turn + stream], stream=stream)
            add("image ids", files[2 * turn + stream], stream=stream, ids=True)
            add("image seeded", rng.choice(files), stream=stream, **SAMPLED)
            add("images", *rng.sample(files, CACHED - 1), stream=stream, ids=bool(turn))
            add("image long prompt", rng.choice(files), stream=stream, after="It is a number. " * load.sentences)
        same = rng.choice(files)
        add("image twice", same, files[turn], same, stream=bool(turn))
        add("image n", *rng.sample(files, 2), stream=False, n=3, **SAMPLED)
        add("image logprobs", rng.choice(files), stream=bool(turn), logprobs=3, return_details=True)
        add("image leaves", *rng.sample(files, 2), stream=True, leave=rng.randint(0, 8))
        add("image leaves", *rng.sample(files, 2), stream=False, leave=rng.random() / 4)
        for kind, file in broken().items():
            add(kind, file, stream=bool(turn), refused=True)
        add("cut image", files[turn], broken()["cut image"], stream=not turn, refused=True)
    count = {"text": f"{TAG} and {TAG}", "multimodal_params": media(*files[:2])}
    return [*found, Case("image count", "/tokens", count, resumable=False)]


def media(*files: bytes) -> dict[str, Any]:
    return {"images": [{"type": "base64", "data": base64.b64encode(file).decode()} for file in files]}
