"""Images in prompts: the embeddings of our own encoder, and images in shared prefixes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest
import torch

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.preprocess import preprocess
from lightllm_mp.vision.tower.tower_loader import load_encoder
from lightllm_mp.vision.vision_config import read_vision
from tests.models.golden import GOLDENS, Prompt, Slots, check_greedy, check_prompt, prompts
from tests.models.runner import Runner

FOLDERS = (
    *("llava_orig", "llava_hf", "qwen_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("mistral3", "pixtral", "gemma3_vl", "gemma4"),
)


@cache
def decoder(folder: str) -> Decoder:
    return load_model(GOLDENS / folder, dtype=torch.float32)


def our_embeddings(folder: str) -> dict[str, torch.Tensor]:
    """By the golden name of the image and of its preprocessing."""
    vision = read_vision(GOLDENS / folder)
    assert vision is not None
    encoder = load_encoder(vision, dtype=torch.float32)
    asked = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]
    found = {}
    for image in {tuple(slots[2:]) for prompt in asked for slots in prompt["image_slots"]}:
        data = (GOLDENS / folder / "images" / f"{image[0]}.png").read_bytes()
        steps = msgspec.structs.replace(vision.spec.preprocess, pad=image[1:] == ("pad",))
        spec = msgspec.structs.replace(vision.spec, preprocess=steps)
        found[" ".join(image)] = encoder.encode([preprocess(decode(data, read_header(data)), spec)])[0]
    return found


def seen_by_us(folder: str) -> list[Prompt]:
    """The golden prompts with our encoder's embeddings."""
    ours = our_embeddings(folder)
    asked = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]
    result = []
    for prompt, raw in zip(prompts(folder), asked, strict=True):
        named = zip(prompt.slots, raw["image_slots"], strict=True)
        result.append(replace(prompt, slots=tuple(with_embeddings(s, ours[" ".join(name[2:])]) for s, name in named)))
    return result


def with_embeddings(slots: Slots, ours: torch.Tensor) -> Slots:
    """`ours`: [tokens, hidden], or with DeepStack [1 + levels, tokens, hidden]."""
    planes = ours if ours.dim() == 3 else ours[None]
    return replace(slots, embeds=planes[0], deep=planes[1:] if len(planes) > 1 else None)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_our_encoder_sees(folder: str) -> None:
    """From the image files to the ids, with text and images in one batch."""
    runner, golden = Runner(decoder(folder)), seen_by_us(folder)
    work = [(runner.sequence(prompt), prompt.ids) for prompt in golden]
    logits = runner.step(work)
    for prompt, got in zip(golden, logits, strict=True):
        check_prompt(prompt, got)
    ids, seen = runner.decode([(seq, got) for (seq, _), got in zip(work, logits, strict=True)], 24)
    for i, prompt in enumerate(golden):
        check_greedy(prompt, ids[i], seen[i])


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("into", [-1, 0, 1, 5])
def test_a_prefix_that_ends_at_or_in_an_image(folder: str, into: int) -> None:
    """`into`: reused slots of the last image; -1: the prefix ends before it."""
    runner = Runner(decoder(folder), slots=8192)
    for prompt in prompts(folder):
        if not prompt.slots:
            continue
        shared = runner.whole(prompt.slots, max(0, prompt.slots[-1].start + into))
        first = runner.sequence(prompt)
        runner.keep(first, shared)
        runner.prefill(first, prompt.ids)
        second = runner.sequence(prompt, like=first, shared=shared)
        logits = runner.prefill(second, prompt.ids[shared:], 9)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(second, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])


def test_the_pictures_matter() -> None:
    """A prompt with another image has other logits: the goldens do not pass by chance."""
    golden = {prompt.name: prompt for prompt in prompts("llava_hf")}
    one, other = golden["one_image"], golden["image_after_bos"]
    runner = Runner(decoder("llava_hf"))
    changed = replace(one, slots=(replace(one.slots[0], embeds=other.slots[0].embeds),))
    logits = runner.prefill(runner.sequence(changed), one.ids)
    assert (logits[-1] - one.logits[-1]).abs().max() > 0.05


def test_ids_of_images_never_reach_the_embedding_table() -> None:
    """Ids far outside the vocabulary give the image's rows unchanged, whatever the others give."""
    embedding, hidden = decoder("llava_hf").embedding, decoder("llava_hf").spec.hidden
    ids = torch.tensor([3, 2**31 - 1, 2**31 - 7, 5], dtype=torch.int32)
    rows = torch.randn(2, hidden)
    nothing: Any = None  # no learned positions, so there is no use for a batch
    got = embedding.forward(ids, nothing, [ImageRows(1, rows)])
    assert torch.equal(got[1:3], rows)
    assert torch.equal(got[[0, 3]], embedding.table[[3, 5]])
