"""The golden checkpoints and outputs under tests/goldens (tests/goldens/README.md describes the format)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file

from lightllm_mp.kernels.cpu import runtime
from lightllm_mp.messages import ImageInfo
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.vision.placeholders import pseudo_ids
from tests.paths import GOLDENS

TOLERANCE = 1e-3 if os.environ.get(runtime.VARIABLE) == "baseline" else 5e-4
"""The level without fused multiply-add rounds each product before it adds it: 5.3e-4 with gemma2, where the others have
1.8e-4 to 2.5e-4."""


@dataclass
class Slots:
    """Positions start .. end - 1 of a prompt belong to an image; `grid` if positions follow from its shape."""

    start: int
    end: int
    embeds: torch.Tensor
    grid: tuple[int, ...] = ()
    deep: torch.Tensor | None = None
    """DeepStack's planes [levels, tokens, hidden]."""


@dataclass
class Prompt:
    ids: list[int]
    """Pseudo ids at the images' positions."""
    greedy: list[int]
    span: tuple[int, int]
    logits: torch.Tensor
    last_logits: torch.Tensor
    gaps: torch.Tensor
    name: str = ""
    slots: tuple[Slots, ...] = ()
    rope_delta: int = 0


def prompts(name: str) -> list[Prompt]:
    """The reference's outputs for one folder."""
    meta = json.loads((GOLDENS / name / "golden.json").read_text())
    data = load_file(GOLDENS / name / "golden.safetensors")
    return [
        Prompt(
            ids=_merged(name, p),
            greedy=p["greedy_ids"],
            span=tuple(p["logit_positions"]),
            logits=data[f"p{i}.logits"],
            last_logits=data[f"p{i}.greedy_last_logits"],
            gaps=data[f"p{i}.greedy_gap"],
            name=p["name"],
            slots=tuple(_whole(name, p["input_ids"], _slots(data, *slots)) for slots in p.get("image_slots", ())),
            rope_delta=p.get("rope_delta", 0),
        )
        for i, p in enumerate(meta["prompts"])
    ]


def _merged(folder: str, prompt: dict[str, Any]) -> list[int]:
    """The ids; those of image slots come from the digest of the image's golden name."""
    ids = list(prompt["input_ids"])
    vocab = read_model_config(GOLDENS / folder).vocab if prompt.get("image_slots") else 0
    for start, end, *image in prompt.get("image_slots", ()):
        ids[start:end] = pseudo_ids(ImageInfo(" ".join(image).encode(), 0, 0, end - start), vocab).tolist()
    return ids


def _slots(data: dict[str, torch.Tensor], start: int, end: int, *image: str) -> Slots:
    key = "img." + ".".join(image)
    if key + ".embeds" not in data:
        key = f"img.{image[0]}.pad"  # of square images, whose two preprocessings agree
    grid = data.get(key + ".grid_thw", torch.empty(0))
    return Slots(start, end, data[key + ".embeds"], tuple(int(n) for n in grid.tolist()), data.get(key + ".deepstack"))


def _whole(folder: str, ids: list[int], slots: Slots) -> Slots:
    """Slots of the break and end tokens of a Pixtral image, whose embeddings come from the language model."""
    at = torch.tensor(ids[slots.start : slots.end])
    if len(at) == len(slots.embeds):
        return slots
    table = load_file(GOLDENS / folder / "model.safetensors")["language_model.model.embed_tokens.weight"].float()
    image = json.loads((GOLDENS / folder / "golden.json").read_text())["image_token_id"]
    return replace(slots, embeds=table[at].masked_scatter((at == image).unsqueeze(1), slots.embeds))


@dataclass
class Movement:
    """The distance of 16-bit logits from the golden ones, and the share of unchanged greedy ids."""

    mean: float
    agreement: float


def moved_in_sixteen_bits(name: str) -> bool:
    """Whether the reference also ran in 16 bits; it did not with quantised weights."""
    return "observed_low_precision" in json.loads((GOLDENS / name / "golden.json").read_text())


def observed_movement(name: str, dtype: torch.dtype) -> Movement:
    """That of the reference itself."""
    meta = json.loads((GOLDENS / name / "golden.json").read_text())
    seen = meta["observed_low_precision"][str(dtype).removeprefix("torch.")]
    agreed, steps = map(int, seen["teacher_forced_argmax"].split("/"))
    return Movement(seen["mean"], agreed / steps)


def movement(golden: list[Prompt], forced: list[torch.Tensor]) -> Movement:
    """`forced`: for each prompt, the logits at all positions of the prompt followed by its greedy ids but the last."""
    apart, agreed = [], 0
    for prompt, logits in zip(golden, forced, strict=True):
        start, end = prompt.span
        apart.append((logits[start:end] - prompt.logits).abs().flatten())
        chosen = logits[len(prompt.ids) - 1 :].argmax(-1).tolist()
        agreed += sum(mine == theirs for mine, theirs in zip(chosen, prompt.greedy, strict=True))
    return Movement(torch.cat(apart).mean().item(), agreed / sum(len(prompt.greedy) for prompt in golden))


def check_prompt(prompt: Prompt, logits: torch.Tensor) -> None:
    """`logits` of all prompt positions, or of the last ones."""
    start, end = prompt.span
    expected = prompt.logits
    got = logits[start - end :] if end == len(prompt.ids) else logits[start:end]
    if got.shape[0] < expected.shape[0]:
        expected = expected[-got.shape[0] :]
    assert (got - expected).abs().max().item() < TOLERANCE


def check_greedy(prompt: Prompt, ids: list[int], logits: torch.Tensor) -> None:
    """`ids` [24] and the logits [24, vocab] they came from."""
    assert ids == prompt.greedy
    assert (logits[-1] - prompt.last_logits).abs().max().item() < TOLERANCE
