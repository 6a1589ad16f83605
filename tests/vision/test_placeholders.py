"""Image tags in text, image ids in token-id prompts, and the pseudo ids that stand for images."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import ImageInfo, ImageSpan
from lightllm_mp.vision.placeholders import (
    IMAGE_ID,
    expand_ids,
    join_chunks,
    pseudo_ids,
    split_text,
    sure_match,
)
from lightllm_mp.vision.spec import ImageTags
from tests.vision.vision_golden import FOLDERS, facts, model

LLAVA, QWEN, QWEN2_5 = (model(name).spec.tags for name in ("llava_orig", "qwen_vl", "qwen2_5_vl"))
PIXTRAL, GEMMA3, GEMMA4 = (model(name).spec.tags for name in ("pixtral", "gemma3_vl", "gemma4"))
VOCAB = 1000


def image(name: str, tokens: int = 5) -> ImageInfo:
    return ImageInfo(hashlib.sha256(name.encode()).digest(), 0, 0, tokens)


def positions(spans: tuple[ImageSpan, ...]) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in spans]


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_llava_tags() -> None:
    assert split_text(LLAVA, "USER: <image>\nWhat? <image>", 2) == ["USER: ", "\nWhat? ", ""]
    assert split_text(LLAVA, "no image", 0) == ["no image"]


def test_qwen_vl_tags_are_numbered_and_their_content_dropped() -> None:
    text = "<img></img>What is the difference to <img>file.png\n</img>?"
    assert split_text(QWEN, text, 2) == ["Picture 1:", "\nWhat is the difference to Picture 2:", "\n?"]


def test_qwen_vl_prompts_that_announce_their_images_themselves() -> None:
    text = "Picture 1: <img>a.png</img>\nWhat? Picture 2:<img>b.png</img>\n"
    assert split_text(QWEN, text, 2) == ["Picture 1: ", "\nWhat? Picture 2:", "\n"]


def test_qwen2_5_vl_tags() -> None:
    text = "a<|vision_start|><|image_pad|><|vision_end|>b<|vision_start|><|vision_end|>c"
    assert split_text(QWEN2_5, text, 2) == ["a", "b", "c"]


def test_tags_of_one_word() -> None:
    assert split_text(PIXTRAL, "a[IMG]b", 1) == ["a", "b"]
    assert split_text(GEMMA4, "<|image|><|image|>b", 2) == ["", "", "b"]
    assert split_text(GEMMA3, "a<start_of_image>b<start_of_image>", 2) == ["a\n\n", "\n\nb\n\n", "\n\n"]
    assert split_text(GEMMA3, "a", 0) == ["a"]


@pytest.mark.parametrize(
    ("tags", "text", "images", "said"),
    [
        (PIXTRAL, "[IMG_BREAK]", 0, "an incomplete image tag (a whole one is [IMG])"),
        (GEMMA3, "<start_of_image><end_of_image>", 1, "a whole one is <start_of_image>"),
        (GEMMA4, "<|image>", 0, "a whole one is <|image|>"),
        (LLAVA, "What is this?", 1, "the prompt has 0 places for images (tag <image>), the request brings 1"),
        (LLAVA, "<image><image>", 1, "2 places for images (tag <image>), the request brings 1"),
        (LLAVA, "<image>", 0, "1 places for images (tag <image>), the request brings 0"),
        (LLAVA, "<image>", 3, "1 places for images (tag <image>), the request brings 3"),
        (QWEN, "<img></img>", 2, "1 places for images (tag <img></img>), the request brings 2"),
        (QWEN, "<img>", 1, "0 places for images (tag <img></img>), the request brings 1"),
        (
            QWEN2_5,
            "<|image_pad|>",
            1,
            "0 places for images (tag <|vision_start|><|image_pad|><|vision_end|>), the request brings 1",
        ),
    ],
)
def test_counts_that_differ(tags: ImageTags, text: str, images: int, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        split_text(tags, text, images)
    assert said in caught.value.message
    assert (caught.value.status, caught.value.param) == (400, "multimodal_params")


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        (QWEN, "<img></img> and <img>"),
        (QWEN, "<img><img></img>"),
        (QWEN, "<img></img></img>"),
        (QWEN2_5, "<|vision_start|><|image_pad|><|vision_end|><|image_pad|>"),
        (QWEN2_5, "<|vision_start|><|vision_start|><|vision_end|>"),
    ],
)
def test_incomplete_tags(tags: ImageTags, text: str) -> None:
    with pytest.raises(InvalidRequest, match="incomplete image tag"):
        split_text(tags, text, 1)


@pytest.mark.parametrize("tags", [LLAVA, QWEN, QWEN2_5])
def test_long_hostile_prompts_are_quick(tags: ImageTags) -> None:
    begin = time.perf_counter()
    for text in ("<img>" * 200_000, "<image>" * 200_000, "<|vision_start|>" * 100_000, "<img>" + "</" * 500_000):
        with pytest.raises(InvalidRequest):
            split_text(tags, text, 1)
    assert time.perf_counter() - begin < 5


def test_chunks_are_joined_with_the_families_own_ids() -> None:
    tags = ImageTags(style="img", before=(300,), after=(301, 302))
    found, spans = join_chunks(
        tags, [ids(1, 2), ids(), ids(3)], [ImageSpan(0, image("a", 4)), ImageSpan(0, image("b", 2))], VOCAB
    )
    assert positions(spans) == [(3, 7), (10, 12)]
    assert found.dtype == np.int32
    assert found[[0, 1, 2, 7, 8, 9, 12, 13, 14]].tolist() == [1, 2, 300, 301, 302, 300, 301, 302, 3]
    assert np.array_equal(found[3:7], pseudo_ids(image("a", 4), VOCAB))
    assert np.array_equal(found[10:12], pseudo_ids(image("b", 2), VOCAB))


def test_text_without_images_is_left_alone() -> None:
    found, spans = join_chunks(QWEN, [ids(5, 6)], [], VOCAB)
    assert (found.tolist(), spans) == ([5, 6], ())


def test_id_prompts_get_slots_and_nothing_else() -> None:
    found, spans = expand_ids([7, IMAGE_ID, IMAGE_ID, 8], [image("a", 3), image("a", 3)], VOCAB)
    assert positions(spans) == [(1, 4), (4, 7)]
    assert found[[0, 7]].tolist() == [7, 8]
    assert np.array_equal(found[1:4], found[4:7])
    assert expand_ids([], [], VOCAB)[0].shape == (0,)


def test_counts_in_id_prompts() -> None:
    with pytest.raises(InvalidRequest, match=r"2 places for images \(id -200\), the request brings 1"):
        expand_ids([IMAGE_ID, 4, IMAGE_ID], [image("a")], VOCAB)
    with pytest.raises(InvalidRequest, match=r"0 places for images \(id -200\), the request brings 1"):
        expand_ids([4], [image("a")], VOCAB)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_golden_prompts_come_out_with_their_slots(folder: str) -> None:
    """The golden ids are expanded already: each run is folded to one -200, and expanded again."""
    for prompt in facts(folder)["prompts"]:
        folded, at = [], 0
        for start, end, *_ in prompt["image_slots"]:
            folded += [*prompt["input_ids"][at:start], IMAGE_ID]
            at = end
        folded += prompt["input_ids"][at:]
        images = [image(slot[2], slot[1] - slot[0]) for slot in prompt["image_slots"]]
        found, spans = expand_ids(folded, images, VOCAB)
        assert positions(spans) == [tuple(slot[:2]) for slot in prompt["image_slots"]]
        outside = found < VOCAB
        assert found[outside].tolist() == np.array(prompt["input_ids"])[outside].tolist()
        assert outside.sum() == len(prompt["input_ids"]) - sum(image.tokens for image in images)


def test_a_tokenizers_own_image_token_may_be_the_marker() -> None:
    marker = model("llava_hf").spec.tags.marker
    assert marker == 250
    assert positions(expand_ids([1, 250, 2], [image("a", 3)], VOCAB, marker)[1]) == [(1, 4)]


@pytest.mark.parametrize("vocab", [256, 151_936, (1 << 31) - 10])
def test_pseudo_ids_stay_between_vocabulary_and_31_bits(vocab: int) -> None:
    found = pseudo_ids(image("a", 16_384), vocab)
    assert found.dtype == np.int32
    assert found.min() >= vocab
    assert found.max() <= (1 << 31) - 1


def test_pseudo_ids_follow_from_the_digest() -> None:
    assert np.array_equal(pseudo_ids(image("a"), VOCAB), pseudo_ids(image("a"), VOCAB))
    assert np.array_equal(pseudo_ids(image("a", 9), VOCAB)[:5], pseudo_ids(image("a"), VOCAB))
    # Every process draws the same.
    assert pseudo_ids(image("a", 2), VOCAB).tolist() == [523450719, 1890452042]


def test_images_do_not_share_ids() -> None:
    drawn = np.stack([pseudo_ids(image(str(i), 64), 151_936) for i in range(500)])
    assert len(np.unique(drawn[:, :4], axis=0)) == 500
    assert len(np.unique(drawn)) > 0.999 * drawn.size


def test_a_match_of_few_slots_is_not_trusted() -> None:
    spans = [ImageSpan(10, image("a", 20)), ImageSpan(32, image("b", 2)), ImageSpan(40, image("c", 20))]
    expected = {5: 5, 10: 10, 11: 10, 13: 10, 14: 14, 30: 30, 33: 32, 34: 34, 35: 35, 43: 40, 44: 44, 60: 60}
    assert {n: sure_match(n, spans) for n in expected} == expected
