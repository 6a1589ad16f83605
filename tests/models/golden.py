"""The golden checkpoints and outputs under tests/goldens (its format is described in tests/goldens/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parent.parent / "goldens"
TOLERANCE = 5e-4


@dataclass
class Prompt:
    ids: list[int]
    greedy: list[int]
    span: tuple[int, int]
    logits: torch.Tensor
    last_logits: torch.Tensor
    gaps: torch.Tensor


def prompts(name: str) -> list[Prompt]:
    """What the reference computed for one folder."""
    meta = json.loads((GOLDENS / name / "golden.json").read_text())
    data = load_file(GOLDENS / name / "golden.safetensors")
    return [
        Prompt(
            ids=p["input_ids"],
            greedy=p["greedy_ids"],
            span=tuple(p["logit_positions"]),
            logits=data[f"p{i}.logits"],
            last_logits=data[f"p{i}.greedy_last_logits"],
            gaps=data[f"p{i}.greedy_gap"],
        )
        for i, p in enumerate(meta["prompts"])
    ]


@dataclass
class Movement:
    """How far logits in 16 bits are from the golden ones, and how often they still choose the golden id."""

    mean: float
    agreement: float


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
