"""Images and videos in a prompt: tags in text become KV slots with pseudo token ids. Imports no torch.

The ids of an image's slots are derived from its digest and lie at or above the vocabulary. So the prefix tree, which is
keyed by ids, reuses an image's KV like any other, and the worker takes these positions' embeddings from the image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import zip_longest

import msgspec
import numpy as np
from numpy.typing import NDArray

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import ImageInfo, ImageSpan
from lightllm_mp.vision.spec import IMAGE_ID, ImageTags

Ids = NDArray[np.int32]
ID_END = 1 << 31
PARAM = "multimodal_params"
SURE_SLOTS = 4
"""Slots that tell two images apart beyond doubt: each has 31 bits less what the vocabulary takes."""


Prompted = tuple[Ids, tuple[ImageSpan, ...]]
"""Ids of a prompt with its images' slots, and where these stand, in the order of the images."""


def pseudo_ids(image: ImageInfo, vocab: int) -> Ids:
    """int32 [tokens] in [vocab, 2^31): the digest drawn out, so equal for equal images and independent otherwise."""
    drawn = hashlib.shake_128(image.key).digest(4 * image.tokens)
    return (vocab + np.frombuffer(drawn, dtype="<u4").astype(np.int64) % (ID_END - vocab)).astype(np.int32)


def expand_ids(ids: Sequence[int] | Ids, images: Sequence[ImageInfo], vocab: int, marker: int = IMAGE_ID) -> Prompted:
    """Replaces each `marker` by the slots of the next image and nothing else: start and end ids are the caller's.

    Raises InvalidRequest where the counts differ, and for a video: the times of its frames are text.
    """
    if any(image.seconds for image in images):
        raise InvalidRequest("a prompt of ids takes no videos: send a text or a chat", param=PARAM)
    given = np.asarray(ids, dtype=np.int32)
    places = np.flatnonzero(given == marker)
    _check_counts(len(places), f"id {marker}", len(images))
    chunks = np.split(given, places)
    return _joined([chunks[0], *(chunk[1:] for chunk in chunks[1:])], [ImageSpan(0, one) for one in images], vocab)


def join_chunks(tags: ImageTags, chunks: Sequence[Ids], spans: Sequence[ImageSpan], vocab: int) -> Prompted:
    """Token ids of the texts that `split_text` gave, and between them the slots of images and frames (`tags_of_frames`)
    with the family's own ids around them. Only the first chunk may have been encoded with special tokens."""
    before, after = (np.array(ids, dtype=np.int32) for ids in (tags.before, tags.after))
    last = len(chunks) - 1
    whole = [
        np.concatenate([after if i else after[:0], chunk, before if i < last else before[:0]])
        for i, chunk in enumerate(chunks)
    ]
    return _joined(whole, spans, vocab)


def _joined(chunks: Sequence[Ids], spans: Sequence[ImageSpan], vocab: int) -> Prompted:
    parts, placed, at = [chunks[0]], list[ImageSpan](), len(chunks[0])
    drawn = {span.image.key: pseudo_ids(span.image, vocab) for span in spans}
    for span, chunk in zip(spans, chunks[1:], strict=True):
        placed.append(msgspec.structs.replace(span, start=at))
        parts += [drawn[span.image.key][span.first : span.first + span.tokens], chunk]
        at += span.tokens + len(chunk)
    return np.concatenate(parts).astype(np.int32), tuple(placed)


def tags_of_frames(tags: ImageTags, text: str, images: Sequence[ImageInfo]) -> tuple[str, list[ImageSpan]]:
    """The text with each video's tag replaced by what Qwen3-VL's processor writes: for each frame its time and an
    image's tag. And what stands at each tag then, with start 0.

    Raises InvalidRequest where the tags of images or videos are not as many as those.
    """
    stills = [image for image in images if not image.seconds]
    videos = [image for image in images if image.seconds]
    if not videos:
        return text, [ImageSpan(0, image) for image in images]
    pattern, name = TAGS[tags.style]
    chunks, rest = text.split(VIDEO_TAG), iter(stills)
    _check_counts(len(chunks) - 1, f"tag {VIDEO_TAG}", len(videos), "videos")
    places = [sum(1 for _ in pattern.finditer(chunk)) for chunk in chunks]
    _check_counts(sum(places), f"tag {name}", len(stills))
    whole, spans = "", list[ImageSpan]()
    for chunk, count, video in zip_longest(chunks, places, videos):
        whole += chunk
        spans += [ImageSpan(0, next(rest)) for _ in range(count)]
        if video is not None:
            whole += "".join(f"<{seconds:.1f} seconds>{name}" for seconds in video.seconds)
            slim = msgspec.structs.replace(video, seconds=())  # the scheduler needs no times
            spans += [ImageSpan(0, slim, number) for number in range(video.frames)]
    return whole, spans


def split_text(tags: ImageTags, text: str, images: int) -> list[str]:
    """The texts before, between and after the image tags: one more than there are images.

    For Gemma 3 two newlines stand before and after each image, as its processor writes them.
    For Qwen-VL `Picture k:` precedes and a newline follows each image, as in LightLLM, unless the prompt has them.
    Raises InvalidRequest where tags are incomplete or their number is not that of the images.
    """
    pattern, name = TAGS[tags.style]
    _check_counts(sum(1 for _ in pattern.finditer(text)), f"tag {name}", images)
    chunks = pattern.split(text)
    if any(rest in chunk for rest in REST_OF_TAGS[tags.style] for chunk in chunks):
        raise InvalidRequest(f"the prompt has an incomplete image tag (a whole one is {name})", param=PARAM)
    if tags.style == "turn":
        last = len(chunks) - 1
        return ["\n\n" * (i > 0) + chunk + "\n\n" * (i < last) for i, chunk in enumerate(chunks)]
    return _announced(chunks) if tags.style == "img" else chunks


TAGS = {
    "image": (re.compile(r"<image>"), "<image>"),
    "img": (re.compile(r"<img>(?:(?!<img>).)*?</img>", re.DOTALL), "<img></img>"),
    "vision": (
        re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)?<\|vision_end\|>"),
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "pipes": (re.compile(r"<\|image\|>"), "<|image|>"),
    "turn": (re.compile(r"<start_of_image>"), "<start_of_image>"),
    "bracket": (re.compile(r"\[IMG\]"), "[IMG]"),
}
"""Style -> (pattern of a whole tag, its name). The content of `<img></img>` is ignored."""
VIDEO_TAG = "<|vision_start|><|video_pad|><|vision_end|>"
REST_OF_TAGS: dict[str, tuple[str, ...]] = {
    "image": (),
    "img": ("<img>", "</img>"),
    "vision": ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"),
    "pipes": ("<|image>", "<image|>"),
    "turn": ("<image_soft_token>", "<end_of_image>"),
    "bracket": ("[IMG_BREAK]", "[IMG_END]"),
}
_ANNOUNCED = re.compile(r"Picture \d+: ?\Z")


def _announced(chunks: list[str]) -> list[str]:
    """Adds `Picture k:` before and a newline after each image, where they are missing."""
    last = len(chunks) - 1
    result = []
    for i, chunk in enumerate(chunks):
        start = "\n" if i and not chunk.startswith("\n") else ""
        end = f"Picture {i + 1}:" if i < last and not _ANNOUNCED.search(chunk) else ""
        result.append(start + chunk + end)
    return result


def _check_counts(found: int, what: str, brought: int, of: str = "images") -> None:
    if found != brought:
        raise InvalidRequest(
            f"the prompt has {found} places for {of} ({what}), the request brings {brought}", param=PARAM
        )


def sure_match(matched: int, spans: Sequence[ImageSpan], whole: bool = False) -> int:
    """How many of `matched` leading ids of a prompt may be taken as the same prompt.

    A match that ends inside an image after a few slots may be two images whose first ids are equal by chance (one in
    two thousand million) or by design: it is cut back to the image's start. `whole`: so is any that ends inside an
    image, because a step computes all its slots.
    """
    for span in spans:
        if span.start < matched < span.end and (whole or matched - span.start < SURE_SLOTS):
            return span.start
    return matched
