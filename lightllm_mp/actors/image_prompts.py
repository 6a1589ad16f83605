"""Prompts with images: tags and markers become slots, and the spans that tell the router where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.messages import ImageSpan, Picture
from lightllm_mp.vision.placeholders import ExpandedPrompt, ImageSlots, expand_ids, join_chunks, split_text
from lightllm_mp.vision.sizing import image_tokens, patch_grid
from lightllm_mp.vision.spec import VisionSpec

Ids = NDArray[np.int32]
Prompted = tuple[Ids, tuple[ImageSpan, ...]]
Encode = Callable[[str, bool], Ids]
"""(text, whether it is the first of the prompt) -> ids"""


def text_with_images(spec: VisionSpec, text: str, images: Sequence[Picture], vocab: int, encode: Encode) -> Prompted:
    """Ids of a text whose tags stand for `images`. Raises InvalidRequest where the counts differ, also without images:
    a tag that stands for nothing is a mistake."""
    texts = split_text(spec.tags, text, len(images))
    chunks = [encode(chunk, i == 0) for i, chunk in enumerate(texts)]
    return _spanned(spec, join_chunks(spec.tags, chunks, _slots(spec, images), vocab), images)


def ids_with_images(spec: VisionSpec, ids: Ids, images: Sequence[Picture], vocab: int) -> Prompted:
    """Ids of a prompt in which each -200 stands for the slots of the next image. Raises InvalidRequest likewise."""
    return _spanned(spec, expand_ids(ids, _slots(spec, images), vocab), images)


def _slots(spec: VisionSpec, images: Sequence[Picture]) -> list[ImageSlots]:
    return [ImageSlots(image.key, image_tokens(spec, image.width, image.height)) for image in images]


def _spanned(spec: VisionSpec, found: ExpandedPrompt, images: Sequence[Picture]) -> Prompted:
    dynamic = spec.preprocess.mode == "dynamic"
    spans = tuple(
        ImageSpan(
            start=span.start,
            count=span.end - span.start,
            key=image.key,
            grid=tuple(patch_grid(spec, image.width, image.height)) if dynamic else (),
        )
        for span, image in zip(found.spans, images, strict=True)
    )
    return found.ids, spans
