"""Batches for training: pictures of scenes, several questions about each in one row, and what their patches show.

All questions of a row stand behind the same picture and see it and themselves, not each other (`segments`), so that a
row teaches what as many rows with one question would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightllm_mp.text.tokenizer import Tokenizer
from lightllm_mp.vision.preprocess import preprocess
from lightllm_mp.vision.spec import VisionSpec
from tools.demo_vlm.drawing import drawn
from tools.demo_vlm.prompts import Ids, styles
from tools.demo_vlm.questions import KINDS, asked
from tools.demo_vlm.scenes import COLOURS, NUMBERS, PLACES, RELATIONS, SHAPES, SIZES, WORDS, Kind, Scene, sample
from tools.demo_vlm.scenes import KINDS as SCENE_KINDS

TEXT = 96
"""Tokens of a row beside those of its picture: nearly all rows have room for three questions."""
IGNORE = -100
PLANES = {
    "colour": (*COLOURS,),
    "shape": (*SHAPES,),
    "size": (*SIZES,),
    "place": (*PLACES,),
    "relation": (*RELATIONS,),
    "group": (*range(1, 6),),
    "text": (*WORDS, *NUMBERS),
}
"""What is asked of the patches that a thing covers, besides the general questions, to give the tower a start. Of a text
all patches are asked."""


class Batch(NamedTuple):
    """`rows` pictures."""

    pixels: Tensor
    """float16 [rows, 3, image, image]"""
    ids: Tensor
    """int64 [rows, length], 0 in the slots of the picture"""
    slots: Tensor
    """bool [rows, length]"""
    segments: Tensor
    """int8 [rows, length]: 0 up to the picture, then 1, 2, ...; -1 behind the last"""
    positions: Tensor
    """int64 [rows, length]"""
    labels: Tensor
    """int64 [rows, length]: the next id where it belongs to an answer, else IGNORE"""
    kinds: Tensor
    """int64 [rows, questions]: index into questions.KINDS, -1 for none"""
    planes: Tensor
    """int64 [rows, PLANES, patches]: index into a plane's names; their number where there is nothing; IGNORE"""


class Scenes(IterableDataset[Batch]):
    """Endless batches. Each scene has a number of its own under `seed`, so that any run gives the same ones."""

    def __init__(
        self,
        spec: VisionSpec,
        tokenizer: Tokenizer,
        *,
        seed: int,
        rows: int,
        questions: int,
        kinds: tuple[Kind, ...] = SCENE_KINDS,
        period: int | None = None,
        text: int = TEXT,
    ) -> None:
        """`period`: scenes after which the first comes again. `text`: tokens of a row, others are left out."""
        assert tokenizer.chat_template is not None
        self._spec, self._ids = spec, Ids(tokenizer)
        self._styles = styles(tokenizer.chat_template)
        self._seed, self._rows, self._questions, self._kinds, self._period = seed, rows, questions, kinds, period
        self._length = spec.grid**2 + text

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        number, step = (info.id, info.num_workers) if info is not None else (0, 1)
        while True:
            yield self.batch(number)
            number += step

    def batch(self, number: int) -> Batch:
        """The batch with this number."""
        first = number * self._rows
        scenes = [i % self._period if self._period else i for i in range(first, first + self._rows)]
        rows = [self._row(np.random.default_rng((self._seed, i))) for i in scenes]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))

    def _row(self, draw: Generator) -> tuple[np.ndarray, ...]:
        scene = sample(draw, self._kinds)
        pixels = preprocess(drawn(scene, draw), self._spec).pixels.astype(np.float16)
        style = self._styles[draw.choice(len(self._styles), p=[style.share for style in self._styles])]
        ids, positions = np.zeros((2, self._length), np.int64)
        slots, segments = np.zeros(self._length, np.bool_), np.full(self._length, -1, np.int8)
        labels, kinds = np.full(self._length, IGNORE), np.full(self._questions, -1)
        head, patches = self._ids.of(style.head, True), self._spec.grid**2
        at = start = len(head) + patches
        ids[: len(head)], slots[len(head) : at], segments[:at], positions[:at] = head, True, 0, np.arange(at)
        for number, one in enumerate(asked(scene, draw, self._questions)):
            question = self._ids.of(style.rest(one.question))
            answer = [*self._ids.of(style.space + one.answer), self._ids.end]
            end = at + len(question) + len(answer)
            if end > self._length:
                break
            ids[at:end], segments[at:end] = question + answer, number + 1
            positions[at:end] = np.arange(start, start + end - at)
            labels[at + len(question) - 1 : end - 1] = answer
            kinds[number] = KINDS.index(one.kind)
            at = end
        return pixels, ids, slots, segments, positions, labels, kinds, planes(scene, self._spec.grid)


def planes(scene: Scene, grid: int) -> np.ndarray:
    """int64 [PLANES, grid * grid]: what each patch is part of, by its middle; a thing has at least one patch."""
    found = np.empty((len(PLANES), grid * grid), np.int64)
    of_text = {"text": scene.text, "colour": scene.colour}
    for plane, (question, names) in zip(found, PLANES.items(), strict=True):
        plane[:] = (names.index(of_text[question]) if question in of_text else IGNORE) if scene.text else len(names)
    # The picture lies in the middle of a square whose edge is its longer one.
    scale = max(scene.width, scene.height) / min(scene.width, scene.height)
    middles = ((np.arange(grid) + 0.5) / grid - 0.5) * scale
    counts = {thing.name: count for thing, count in scene.groups}
    for thing in scene.things:
        distance = np.hypot(middles[None, :] - thing.x, middles[:, None] - thing.y).ravel()
        covered = (distance < 0.8 * thing.radius) | (distance == distance.min())
        said = (thing.colour, thing.shape, thing.size, thing.place, thing.relation, counts[thing.name], "")
        for plane, names, name in zip(found, PLANES.values(), said, strict=True):
            plane[covered] = names.index(name) if name in names else IGNORE
    return found
