"""Tower and language model together: how likely the true answers are, and what would be said."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tools.demo_vlm.batches import IGNORE, Batch
from tools.demo_vlm.language import FrozenLlama
from tools.demo_vlm.tower import Tower


class Answers(NamedTuple):
    """Of all tokens of all answers of a batch."""

    logits: Tensor
    """[tokens, vocabulary]"""
    targets: Tensor
    """int64 [tokens]"""
    features: Tensor
    """[rows, patches, width] of the tower"""


def answers(tower: Tower, language: FrozenLlama, batch: Batch) -> Answers:
    """The next token at each position before one of an answer, given the true ones before it."""
    features = tower(batch.pixels)
    x = language.embed[batch.ids]
    x = x.masked_scatter(batch.slots.unsqueeze(-1), tower.project(features).to(x.dtype))
    states = language(x, batch.positions, visible(batch.segments))
    asked = batch.labels != IGNORE
    return Answers(language.logits(states[asked]), batch.labels[asked], features)


def visible(segments: Tensor) -> Tensor:
    """int8 [rows, length] -> bool [rows, 1, length, length]: what stands before, in the common part or the own one."""
    length = segments.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    key, query = segments[:, None, :], segments[:, :, None]
    return (before & ((key == 0) | (key == query))).unsqueeze(1)


def right(found: Answers, batch: Batch) -> Tensor:
    """bool [rows, questions]: whether greedy decoding would give this answer, and end there.

    It would exactly where each token is the most likely one after the true ones before it.
    """
    asked = batch.labels != IGNORE
    wrong = torch.zeros_like(batch.kinds)
    # A label stands one place before its token, the first of them on the question's last token: the same segment.
    question = batch.segments[asked].long() - 1
    row = asked.nonzero()[:, 0]
    missed = (found.logits.argmax(-1) != found.targets).long()
    wrong.index_put_((row, question), missed, accumulate=True)
    return wrong == 0


@torch.inference_mode()
def greedy(language: FrozenLlama, x: Tensor, count: int) -> list[int]:
    """The `count` ids that follow embeddings [length, hidden]; all is computed anew for each of them."""
    ids: list[int] = []
    while len(ids) < count:
        length = len(x)
        positions = torch.arange(length, device=x.device)[None]
        mask = visible(torch.zeros(1, length, dtype=torch.int8, device=x.device))
        ids.append(int(language.logits(language(x[None], positions, mask)[0, -1]).argmax()))
        x = torch.cat([x, language.embed[ids[-1:]]])
    return ids
