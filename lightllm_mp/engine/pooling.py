"""Pooling: makes embeddings and scores from hidden states, step by step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.interfaces import Model
from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.models.spec import ModelSpec


def needs_lines(spec: ModelSpec) -> bool:
    """Whether pooling reads more hidden states than the last one of each sequence."""
    return spec.pooling is not None and spec.pooling.take != "last"


class Pooler:
    """Makes the pooled rows of sequences whose prompts end with a step.

    For a mean, it keeps a sum for each row of the tables, float32 [rows, hidden], while chunks come. Tokens are added
    in order of position, so the sum's bits depend neither on the chunks nor on other sequences.
    """

    def __init__(self, model: Model, rows: int, device: torch.device) -> None:
        assert model.spec.pooling is not None
        self._model, self._take, self._device = model, model.spec.pooling.take, device
        hidden = model.spec.hidden if self._take == "mean" else 0
        self._sums = torch.zeros((rows, hidden), dtype=torch.float32, device=device)

    def rows(self, hidden: Tensor, step: Step) -> Tensor | None:
        """Float32 [pooled, width] from the step's hidden states; None if no prompt ends here."""
        means = self._means(hidden, step) if self._take == "mean" else None
        if not len(step.pooled):
            return None
        if means is not None:
            return self._model.pool(means)
        lines = step.seq_start[step.pooled].astype(np.int64) if self._take == "cls" else step.pooled_lines
        return self._model.pool(hidden[self._put(lines)])

    def _means(self, hidden: Tensor, step: Step) -> Tensor:
        """Adds the step's hidden states to the sums; float32 [pooled, hidden]."""
        rows, count, lines = self._put(step.rows.astype(np.int64)), len(step.rows), int(step.seq_start[-1])
        before = self._sums[rows] * self._put((step.starts > 0).astype(np.float32)).unsqueeze(1)
        order = np.insert(np.arange(count, count + lines), step.seq_start[:-1], np.arange(count))
        values = torch.cat((before, hidden.float()))[self._put(order)]
        offsets = self._put(step.seq_start.astype(np.int64) + np.arange(count + 1))
        sums = torch.segment_reduce(values, "sum", offsets=offsets, axis=0)
        self._sums[rows] = sums
        lengths = self._put(step.ends[step.pooled].astype(np.float32))
        return sums[self._put(step.pooled)] / lengths.unsqueeze(1)

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
