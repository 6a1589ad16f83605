"""Runs steps with plain torch calls: on a CPU, and on a GPU without Triton."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.interfaces import Model
from lightllm_mp.engine.pooling import needs_lines
from lightllm_mp.engine.row_tables import RowTables
from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.prompt_logprobs import asks_for_lines
from lightllm_mp.engine.sampling.rules import RuleTable
from lightllm_mp.engine.sampling.torch_sampler import Choice, TorchSampler
from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.plan import Plan


class TorchSteps:
    """A StepRunner (see interfaces.py)."""

    def __init__(self, model: Model, tables: RowTables, rules: RuleTable, kv: KVPool) -> None:
        self._model, self._tables, self._rules, self._kv = model, tables, rules, kv
        self._sampler = TorchSampler(rules, tables.tokens)
        self._needs_lines = needs_lines(model.spec)

    def capture(self, largest_only: bool = False) -> None:
        """Does nothing: plain torch has no graphs."""

    def clear(self) -> None:
        self._rules.clear()
        self._tables.clear()

    def begin(self, plan: Plan, step: Step | None) -> None:
        for setup in plan.setups:
            self._rules.set(setup)
        if self._tables.classed:
            self._tables.start_rows(plan.setups)
        tables = self._tables
        tables.write(tables.tokens, tables.edits(plan.ids))
        tables.write(tables.all_slots, tables.slot_edits(plan.slots))
        if step is not None:
            step.ends_only = not (self._needs_lines or step.joins or asks_for_lines(step, self._rules))

    def forward(self, step: Step, images: Sequence[ImageRows]) -> Tensor:
        tables = self._tables
        at = self._put(step.at)
        ids, batch = tables.tokens.view(-1)[at], step.batch(tables, at, join=step.joins)
        return self._model.forward(ids, batch, self._kv, images, ends_only=step.ends_only)

    def last(self, hidden: Tensor, step: Step) -> Tensor:
        lines = step.sampled_lines
        return hidden if len(lines) == hidden.shape[0] else hidden[self._put(lines)]

    def sample(self, logits: Tensor, step: Step, part: slice, masks: GuideMasks | None) -> Choice:
        rows, positions = step.sampled_rows[part], step.sampled_ends[part]
        choice = self._sampler.choose(logits, rows, positions, masks)
        self._model.group.from_first(choice.ids)
        at = self._put(self._tables.flat(rows, positions))
        self._tables.tokens.view(-1)[at] = choice.ids.int()
        return choice

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._tables.device)
