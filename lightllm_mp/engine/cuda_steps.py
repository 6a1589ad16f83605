"""How a step is carried out on a GPU: one upload, a CUDA graph for decode steps, nothing that waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.cuda_graphs import DecodeGraphs
from lightllm_mp.engine.interfaces import Model
from lightllm_mp.engine.pinned_upload import PinnedUpload
from lightllm_mp.engine.row_tables import RowTables
from lightllm_mp.engine.sampling.cuda_sampler import CudaSampler
from lightllm_mp.engine.sampling.prompt_logprobs import asks_for_lines
from lightllm_mp.engine.sampling.rules import RuleTable
from lightllm_mp.engine.sampling.torch_sampler import Choice
from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.triton.step_edits import DecodeInputs, commit, edit, place
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.plan import Plan

NOTHING = np.empty(0, np.int32)


class CudaSteps:
    """Has TorchSteps' methods. A step's tensors are views of its one upload."""

    def __init__(self, model: Model, tables: RowTables, rules: RuleTable, kv: KVPool) -> None:
        self._model, self._tables, self._rules, self._kv = model, tables, rules, kv
        self._sampler = CudaSampler(rules, tables.tokens)
        self._staging = PinnedUpload(tables.device)
        self._inputs = DecodeInputs(tables.rows, tables.spare_row, tables.device)
        self._hidden = torch.empty((tables.rows, model.spec.hidden), dtype=model.dtype, device=tables.device)
        self._graphs = DecodeGraphs(self._decode, tables.rows) if tables.device.type == "cuda" else None
        self._graph: int | None = None
        self._sampled: tuple[Tensor, Tensor, Tensor] | None = None
        self._batch: tuple[Tensor, Batch] | None = None
        tables.slots[tables.spare_row].fill_(kv.dummy_slot)
        model.reserve(tables.width)

    def capture(self, largest_only: bool = False) -> None:
        """Captures decode steps of all sizes, or of the largest, to see what memory they need."""
        if self._graphs is not None:
            self._graphs.capture(1 if largest_only else None)

    def clear(self) -> None:
        self._sampler.clear()
        self._tables.clear()
        self._tables.slots[self._tables.spare_row].fill_(self._kv.dummy_slot)

    def begin(self, plan: Plan, step: Step | None) -> None:
        self._sampler.set(plan.setups)
        tables = self._tables
        ids, slots = tables.edits(plan.ids), tables.edits(plan.slots)
        firsts = self._rotary_firsts(plan)
        edits = (*ids, *slots, *firsts)
        if step is None:
            self._edit(*self._staging.send(edits)[:2], edits)
            return
        step.ends_only = not asks_for_lines(step, self._rules)
        self._graph = None if len(plan.images) or step.rotary is not None else self._graph_for(step)
        seqs = len(step.rows)
        extra = () if self._graph else (step.seq_start, step.positions, step.at, step.rotary_at.ravel())
        whole = len(step.sampled) == seqs and (step.ends_only or step.max_count == 1)
        sampled = () if whole else (step.sampled_lines, step.sampled_rows, step.sampled_ends)
        words, starts, views = self._staging.send((*edits, step.rows, step.ends, *extra, *sampled))
        self._edit(words, starts, edits)
        rows, ends = views[6:8]
        if self._graph:
            place(rows, ends, self._graph, self._inputs)
        self._batch = None if self._graph else self._eager(step, rows, ends, *views[8:12])
        self._sampled = (words[:0], rows, ends) if whole else (views[-3], views[-2], views[-1])

    def _edit(self, words: Tensor, starts: list[int], edits: tuple[np.ndarray, ...]) -> None:
        tables = self._tables
        runs = [(starts[i], starts[i + 1], len(edits[i])) for i in (0, 2, 4)]
        edit(words, runs, (tables.tokens, tables.slots, tables.rotary_first))

    def _rotary_firsts(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        return self._tables.start_rows(plan.setups) if self._tables.classed else (NOTHING, NOTHING)

    def _graph_for(self, step: Step) -> int | None:
        if self._graphs is None or step.max_count > 1 or len(step.sampled) < len(step.rows):
            return None
        return self._graphs.size_for(len(step.rows))

    def _eager(
        self, step: Step, rows: Tensor, ends: Tensor, seq_start: Tensor, positions: Tensor, at: Tensor, rotary: Tensor
    ) -> tuple[Tensor, Batch]:
        tables = self._tables
        return tables.tokens.view(-1).index_select(0, at), Batch(
            positions=positions,
            slots=tables.slots.view(-1).index_select(0, at),
            seq_start=seq_start,
            context=ends,
            rows=rows,
            slot_table=tables.slots,
            max_query=step.max_count,
            max_context=step.max_end,
            rotary_at=rotary if step.rotary is None else rotary.view(-1, 3),
        )

    def forward(self, step: Step, images: Sequence[ImageRows]) -> Tensor:
        if self._batch is not None:
            return self._model.forward(*self._batch, self._kv, images, ends_only=step.ends_only)
        assert self._graphs is not None
        assert self._graph is not None
        self._graphs.replay(self._graph)
        return self._hidden[: len(step.rows)]

    def _decode(self, size: int) -> None:
        """The part of a decode step that is captured."""
        tables = self._tables
        ids, batch = self._inputs.batch(size, tables.tokens, tables.slots, tables.rotary_first)
        self._hidden[:size].copy_(self._model.forward(ids, batch, self._kv))

    def last(self, hidden: Tensor, step: Step) -> Tensor:
        assert self._sampled is not None
        lines = self._sampled[0]
        return hidden.index_select(0, lines) if len(lines) else hidden

    def sample(self, logits: Tensor, step: Step, part: slice) -> Choice:
        assert self._sampled is not None
        rows, ends = self._sampled[1][part], self._sampled[2][part]
        choice = self._sampler.choose(logits, step.sampled_rows[part], step.sampled_ends[part], (rows, ends))
        self._model.group.from_first(choice.ids)
        report = torch.empty((2, len(rows)), dtype=torch.int32, device=logits.device)
        commit(self._tables.tokens, rows, ends, choice.ids, choice.logprobs, report)
        choice.ids, choice.logprobs = report[0], report[1].view(torch.float32)
        return choice
