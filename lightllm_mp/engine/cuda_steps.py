"""Runs steps on a GPU: one upload per step, a CUDA graph for decode steps, and no call that waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.cuda_graphs import DecodeGraphs
from lightllm_mp.engine.interfaces import Model
from lightllm_mp.engine.pinned_upload import PinnedUpload, Uploaded
from lightllm_mp.engine.pooling import needs_lines
from lightllm_mp.engine.row_tables import RowTables
from lightllm_mp.engine.sampling.cuda_sampler import CudaSampler
from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.prompt_logprobs import asks_for_lines
from lightllm_mp.engine.sampling.rules import RuleTable
from lightllm_mp.engine.sampling.torch_sampler import Choice
from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.triton.step_edits import DecodeInputs, TableEdit, TableEdits, commit, edit, place
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.plan import Plan

NOTHING = np.empty(0, np.int32)
Part = TypeVar("Part", np.ndarray, Tensor)


class StepParts(NamedTuple, Generic[Part]):
    """A step's upload without its edits: arrays on the host, int32 tensors on the device. A part that the step does not
    need is empty."""

    rows: Part
    """[sequences]"""
    ends: Part
    """[sequences]: lengths after the step."""
    seq_start: Part
    """[sequences + 1]. This part and the next three are empty if the step is a graph."""
    positions: Part
    """[tokens]"""
    at: Part
    """[tokens]: flat table indices."""
    rotary_at: Part
    """[tokens], or [tokens * 3] if positions have three components."""
    sampled_lines: Part
    """[sampled]: rows of hidden states to sample from. This part and the next two are empty if all are sampled in
    order."""
    sampled_rows: Part
    """[sampled]"""
    sampled_ends: Part
    """[sampled]"""


class CudaSteps:
    """A StepRunner (see interfaces.py). A step's tensors are views of its one upload."""

    def __init__(self, model: Model, tables: RowTables, rules: RuleTable, kv: KVPool) -> None:
        self._model, self._tables, self._rules, self._kv = model, tables, rules, kv
        self._sampler = CudaSampler(rules, tables.tokens)
        self._needs_lines = needs_lines(model.spec)
        self._staging = PinnedUpload(tables.device)
        self._inputs = DecodeInputs(tables.rows, tables.spare_row, tables.device)
        self._hidden = torch.empty((tables.rows, model.spec.hidden), dtype=model.dtype, device=tables.device)
        self._graphs = DecodeGraphs(self._decode, tables.rows) if tables.device.type == "cuda" else None
        self._graph: int | None = None
        self._parts: StepParts[Tensor] | None = None
        self._batch: tuple[Tensor, Batch] | None = None
        self._fill_spare_row()
        model.reserve(tables.width)

    def capture(self, largest_only: bool = False) -> None:
        if self._graphs is not None:
            self._graphs.capture(1 if largest_only else None)

    def clear(self) -> None:
        self._sampler.clear()
        self._tables.clear()
        self._fill_spare_row()

    def _fill_spare_row(self) -> None:
        for table, slot in zip(self._tables.slot_tables, self._kv.spare_slots, strict=True):
            table[self._tables.spare_row].fill_(slot)

    def begin(self, plan: Plan, step: Step | None) -> None:
        self._sampler.set(plan.setups)
        tables = self._tables
        edits = (tables.edits(plan.ids), tables.slot_edits(plan.slots), self._rotary_firsts(plan))
        arrays = [array for pair in edits for array in pair]
        if step is None:
            self._edit(self._staging.send(arrays), edits)
            return
        step.ends_only = not (self._needs_lines or asks_for_lines(step, self._rules))
        self._graph = None if len(plan.images) or step.rotary is not None else self._graph_for(step)
        eager = self._graph is None
        apart = len(step.sampled) < len(step.rows) or not (step.ends_only or step.max_count == 1)
        uploaded = self._staging.send(
            arrays,
            StepParts(
                rows=step.rows,
                ends=step.ends,
                seq_start=step.seq_start if eager else NOTHING,
                positions=step.positions if eager else NOTHING,
                at=step.at if eager else NOTHING,
                rotary_at=step.rotary_at.ravel() if eager else NOTHING,
                sampled_lines=step.sampled_lines if apart else NOTHING,
                sampled_rows=step.sampled_rows if apart else NOTHING,
                sampled_ends=step.sampled_ends if apart else NOTHING,
            ),
        )
        self._edit(uploaded, edits)
        parts = StepParts(*uploaded.views)
        if self._graph is not None:
            place(parts.rows, parts.ends, self._graph, self._inputs)
        self._batch = self._eager(step, parts) if eager else None
        self._parts = parts

    def _edit(self, uploaded: Uploaded, edits: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        tables, starts = self._tables, iter(uploaded.starts)
        places = TableEdits(*(TableEdit(next(starts), next(starts), len(values)) for _, values in edits))
        edit(uploaded.words, places, tables.tokens, tables.all_slots, tables.rotary_first)

    def _rotary_firsts(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        return self._tables.start_rows(plan.setups) if self._tables.classed else (NOTHING, NOTHING)

    def _graph_for(self, step: Step) -> int | None:
        if self._graphs is None or step.max_count > 1 or len(step.sampled) < len(step.rows):
            return None
        return self._graphs.size_for(len(step.rows))

    def _eager(self, step: Step, parts: StepParts[Tensor]) -> tuple[Tensor, Batch]:
        tables, near = self._tables, self._tables.window_slots
        return tables.tokens.view(-1).index_select(0, parts.at), Batch(
            positions=parts.positions,
            slots=tables.slots.view(-1).index_select(0, parts.at),
            seq_start=parts.seq_start,
            context=parts.ends,
            rows=parts.rows,
            slot_table=tables.slots,
            max_query=step.max_count,
            max_context=step.max_end,
            rotary_at=parts.rotary_at if step.rotary is None else parts.rotary_at.view(-1, 3),
            state_saves=step.state_saves,
            window_slots=None if near is None else near.view(-1).index_select(0, parts.at),
            window_table=near,
        )

    def forward(self, step: Step, images: Sequence[ImageRows]) -> Tensor:
        if self._batch is not None:
            return self._model.forward(*self._batch, self._kv, images, ends_only=step.ends_only)
        assert self._graphs is not None
        assert self._graph is not None
        self._graphs.replay(self._graph)
        return self._hidden[: len(step.rows)]

    def _decode(self, size: int) -> None:
        """The captured part of a decode step."""
        tables = self._tables
        ids, batch = self._inputs.batch(size, tables.tokens, tables.slot_tables, tables.rotary_first)
        self._hidden[:size].copy_(self._model.forward(ids, batch, self._kv))

    def last(self, hidden: Tensor, step: Step) -> Tensor:
        assert self._parts is not None
        lines = self._parts.sampled_lines
        return hidden.index_select(0, lines) if len(lines) else hidden

    def sample(self, logits: Tensor, step: Step, part: slice, masks: GuideMasks | None) -> Choice:
        assert self._parts is not None
        parts = self._parts
        rows, ends = (parts.sampled_rows, parts.sampled_ends) if len(parts.sampled_rows) else (parts.rows, parts.ends)
        rows, ends = rows[part], ends[part]
        choice = self._sampler.choose(logits, step.sampled_rows[part], step.sampled_ends[part], (rows, ends), masks)
        self._model.group.from_first(choice.ids)
        report = torch.empty((2, len(rows)), dtype=torch.int32, device=logits.device)
        commit(self._tables.tokens, rows, ends, choice.ids, choice.logprobs, report)
        choice.ids, choice.logprobs = report[0], report[1].view(torch.float32)
        return choice
