"""Requests with images for the mixed load: more of them than the cache holds, so that images come and go."""

from __future__ import annotations

import base64
import random
from typing import Any

from scripts.faults.load import SAMPLED, Case, Load
from tests.vision.image_files import encoded, noise, png_of

PICTURES = 8
"""Different good ones."""
CACHED = 5
"""Images that the server's cache holds."""
PLACE = -200
"""What stands for an image in a prompt of ids."""
TAG = "<image>"


def pictures() -> list[bytes]:
    """Files of several sizes and formats, all different."""
    formats = ("PNG", "JPEG", "WEBP", "BMP")
    return [encoded(noise(24 + 7 * n, 60 - 5 * n), formats[n % len(formats)]) for n in range(PICTURES)]


def broken() -> dict[str, bytes]:
    """{kind: file} of what is refused: by its header, by the decoder, for its size."""
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
    return [*found, Case("image count", "/tokens", count)]


def media(*files: bytes) -> dict[str, Any]:
    return {"images": [{"type": "base64", "data": base64.b64encode(file).decode()} for file in files]}
