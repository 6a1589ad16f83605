"""An engine of real processes that takes images: a golden vision tower, and a worker without a model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from lightllm_mp.actors.front.image_files import ImageLane
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.supervision.image_arenas import image_arenas
from lightllm_mp.actors.topology import EMBEDDED, VISUAL, topology
from lightllm_mp.config import Config, MultimodalConfig
from lightllm_mp.messages import Sampling, Terms
from tests.actors.embedded import Embedded, config, described, embedded, mocked
from tests.paths import GOLDENS

TOWER = ("config.json", "model.safetensors", "preprocessor_config.json")


def png(number: int, width: int = 40, height: int = 30) -> bytes:
    """A picture of noise; another one for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def with_images(settings: Config | None = None, **images: Any) -> Config:
    multimodal = MultimodalConfig(**{"enable_multimodal": True, "cache_capacity": 10, **images})
    return msgspec.structs.replace(settings or config(), multimodal=multimodal)


class Seeing:
    """Requests with images to an embedded engine, and what its visual actor says of itself."""

    def __init__(self, engine: Embedded) -> None:
        self.engine = engine
        lane = engine.front.frontend.images
        assert isinstance(lane, ImageLane)
        self.lane: ImageLane = lane

    def submit(
        self, images: Sequence[bytes], tokens: int = 3, text: str = " What?", seed: int = 0, tag: str = "<image>"
    ) -> LiveRequest:
        prompt = tag * len(images) + text
        rules = Sampling(seed=seed, max_new_tokens=tokens, ignore_eos=True)
        uploads = [self.lane.judge.upload(data) for data in images]
        return self.engine.front.frontend.submit(prompt, Terms(rules), images=uploads)

    async def ask(self, images: Sequence[bytes], tokens: int = 3, **options: Any) -> list[int]:
        """The ids of the whole answer."""
        ids, _ = await self.engine.collect(self.submit(images, tokens, **options))
        return ids

    @property
    def numbers(self) -> dict[str, float]:
        return self.engine.front.all_stats()["visual"]

    async def clean(self) -> dict[str, float]:
        """The visual actor's numbers when nothing is held by anybody any more."""
        await self.engine.until_idle()
        while True:
            numbers = self.numbers
            busy = numbers["leased"] or numbers["waiting"] or numbers["working"]
            mailbox = self.engine.front.mailbox
            if not (busy or mailbox.leased or mailbox.backlog or self.lane.waiting or self.lane.files.size):
                return numbers
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def seeing(
    folder: Path, settings: Config | None = None, tower: str = "llava_hf", visual: str | None = None
) -> AsyncIterator[Seeing]:
    for name in TOWER:
        shutil.copy(GOLDENS / tower / name, folder)
    settings = settings or with_images()
    vision = described(folder, images=True).vision
    assert vision is not None
    images = image_arenas(settings.multimodal, settings.model.data_type, vision.spec)
    plan = mocked(topology(front=EMBEDDED, max_body=1 << 20, images=images))
    if visual is not None:
        plan = mocked(plan, visual, VISUAL)
    async with embedded(folder, settings, plan) as engine:
        yield Seeing(engine)
