"""Images whose tokens see each other: one step computes an image whole, and a prefix hit never ends inside an image."""

from __future__ import annotations

import pytest

from lightllm_mp.messages import ImageInfo, ImageSpan, Tokenized
from lightllm_mp.plan import unpack
from lightllm_mp.scheduler.prompt_chunks import whole_images
from tests.scheduler.harness import VOCAB, Harness, harness, prompt, request
from tests.scheduler.mock_images import Part, image_prompt

CAT, DOG = ("cat", 9), ("dog", 5)
SIZES = {9, 5}


def picture(rid: int, *parts: Part, **rules: object) -> Tokenized:
    ids, spans = image_prompt(VOCAB, *parts)
    return request(rid, ids, spans=spans, **rules)


def run_whole(h: Harness) -> Harness:
    """Run to the end. Every plan has to name whole images."""
    while h.step():
        for plan in h.plans:
            for image in unpack(plan).images.tolist():
                assert (image[5], image[2] in SIZES) == (0, True)
    return h.run()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("step_tokens", [12, 15, 64])
def test_no_step_cuts_an_image(depth: int, step_tokens: int) -> None:
    h = harness(depth, rows=3, step_tokens=step_tokens, whole_images=True)
    h.add(picture(1, prompt(4), CAT, prompt(3), DOG, CAT, prompt(2)))
    h.add(picture(2, CAT), request(3, prompt(20)))
    h.add(picture(4, prompt(3, 4), DOG, n=3, temperature=1.0))
    run_whole(h).check_answers()


@pytest.mark.parametrize("kv_tokens", [48, 60])
def test_nor_when_slots_run_out(kv_tokens: int) -> None:
    """Sequences are preempted, resume, and wait for as many slots as an image has."""
    h = harness(1, rows=3, step_tokens=12, kv_tokens=kv_tokens, max_context=44, whole_images=True)
    for rid in range(1, 7):
        h.add(picture(rid, prompt(rid, rid), (f"cat{rid % 3}", 9), prompt(2), DOG, max_new_tokens=20))
    run_whole(h).check_answers()


def test_a_hit_ends_before_an_image_or_behind_it() -> None:
    h = harness(whole_images=True)
    h.add(picture(1, prompt(4), CAT))
    h.run()
    h.add(picture(2, prompt(4), CAT))  # all ids except the last are known, and the last is in the image
    run_whole(h).check_answers()
    assert h.opened[2].cached_tokens == 4
    h.add(picture(3, prompt(4), CAT, prompt(1, 7)))
    run_whole(h).check_answers()
    assert h.opened[3].cached_tokens == 13


def test_the_length_of_a_chunk() -> None:
    spans = (ImageSpan(4, ImageInfo(b"cat", 0, 0, 9)),)
    asked = [(0, 4, 20), (0, 5, 20), (0, 12, 12), (4, 3, 9), (4, 3, 8), (0, 13, 13), (13, 7, 7), (3, 2, 9)]
    assert [whole_images(spans, *numbers) for numbers in asked] == [4, 13, 4, 9, 0, 13, 7, 1]
