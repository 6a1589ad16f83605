"""Carries out step plans on one device: tables, forward pass, sampling. It knows rows and slots, no requests.

Token ids stay on the device within a step and between steps: what is sampled goes straight into the token table, where
the next plan's forward pass finds it, and to the host only for the report.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.logprobs import Alternatives
from lightllm_mp.engine.plan import Plan, unpack
from lightllm_mp.engine.prompt_logprobs import ChunkLogprobs, prompt_logprobs
from lightllm_mp.engine.rules import RuleTable
from lightllm_mp.engine.sampling import Choice, Sampler
from lightllm_mp.engine.step import Step
from lightllm_mp.engine.tables import RowTables
from lightllm_mp.engine.warm_up import warm_up_plans
from lightllm_mp.messages import StepDone
from lightllm_mp.models.batch import Batch, KVPool
from lightllm_mp.models.spec import ModelSpec

LOGIT_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits are made in blocks of about this many: on CPU so few that the memory is reused from step to step (beyond
32 MiB the allocator asks the system each time), on a GPU so many that the head's weights are read once."""


class Model(Protocol):
    """What the executor needs of a decoder (see models/decoder.py). It overwrites what `logits` returns."""

    spec: ModelSpec

    @property
    def dtype(self) -> torch.dtype: ...

    def forward(self, ids: Tensor, batch: Batch, kv: KVPool) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(slots=True)
class _Result:
    """A step's answer, on its way to the host: complete when `arrived` (CUDA only) has happened."""

    step: int
    choices: list[Choice]
    prompt: list[ChunkLogprobs]
    seconds: float = 0.0
    arrived: torch.cuda.Event | None = None

    def send_to_host(self) -> None:
        """Queue the copies behind the step itself, so that a later step need not end before they are read."""
        for choice in self.choices:
            choice.ids, choice.logprobs = _pinned(choice.ids), _pinned(choice.logprobs)
            choice.top = [(lines, (_pinned(ids), _pinned(best))) for lines, (ids, best) in choice.top]
        for chunk in self.prompt:
            chunk.logprobs = _pinned(chunk.logprobs)
            chunk.top = chunk.top and (_pinned(chunk.top[0]), _pinned(chunk.top[1]))
        self.arrived = torch.cuda.Event()
        self.arrived.record()


class Executor:
    """Runs plans in the order of `submit`; `collect` answers in the same order.

    Device memory: the KV pool of `kv_tokens` slots and one spare, and two tables of `rows` lines. A row holds up to
    `max_context` tokens, a step up to `step_tokens`.
    """

    def __init__(
        self,
        model: Model,
        *,
        kv_tokens: int,
        rows: int,
        max_context: int,
        step_tokens: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model
        self.rows, self.max_context, self.step_tokens = rows, max_context, step_tokens
        self.kv = KVPool(model.spec, kv_tokens, dtype=model.dtype, device=self.device)
        # The token sampled after a full context has a position too, which no step computes.
        self.tables = RowTables(rows, max_context + 1, self.device)
        self.rules = RuleTable(rows, model.spec.vocab, self.device)
        self.sampler = Sampler(self.rules, self.tables.tokens)
        self._block = max(1, LOGIT_ELEMENTS[self.device.type] // model.spec.vocab)
        self._results: deque[_Result] = deque()

    @torch.inference_mode()
    def submit(self, plan: bytes) -> None:
        """Starts a step. ValueError for bytes that are no plan, or that reach outside the tables."""
        began = time.perf_counter()
        todo = unpack(bytearray(plan))  # torch does not wrap read-only memory
        result = self._run(todo)
        if self.device.type == "cuda":
            result.send_to_host()
        result.seconds = time.perf_counter() - began
        self._results.append(result)

    @property
    def pending(self) -> int:
        """Steps submitted and not yet collected."""
        return len(self._results)

    @property
    def ready(self) -> bool:
        """Whether `collect` would answer without waiting for the device."""
        return bool(self._results) and (self._results[0].arrived is None or self._results[0].arrived.query())

    def collect(self) -> StepDone:
        """Answers the oldest step that has not been answered. RuntimeError if there is none."""
        if not self._results:
            raise RuntimeError("collect without submit")
        result = self._results.popleft()
        if result.arrived is not None:
            result.arrived.synchronize()
        return _report(result)

    def warm_up(self) -> None:
        """Runs the worst steps there can be, so that later ones find memory touched and code compiled.

        Writes to the pool's spare slot only, and forgets its rows. Call it before the first plan. On CPU no memory
        grows with the context, nor with rows beyond a block of logits, so the steps are kept short there.
        """
        short = self.device.type == "cpu"
        for plan in warm_up_plans(
            rows=min(self.rows, self._block) if short else self.rows,
            max_context=min(self.max_context, self.step_tokens) if short else self.max_context,
            step_tokens=self.step_tokens,
            kv_tokens=self.kv.slots,
            spare_slot=self.kv.dummy_slot,
        ):
            self.submit(plan)
            self.collect()
        self.reset()

    def reset(self) -> None:
        """Forgets rows and unanswered steps; KV memory stays as it is."""
        self._results.clear()
        self.rules.clear()
        self.tables.clear()

    def _run(self, plan: Plan) -> _Result:
        for setup in plan.setups:
            self.rules.set(setup)
        tables = self.tables
        tables.write(tables.tokens, plan.ids)
        tables.write(tables.slots, plan.slots)
        result = _Result(plan.step, [], [])
        if not len(plan.seqs):
            return result
        step = Step.of(plan.seqs, tables)
        at = self._put(step.at)
        hidden = self.model.forward(tables.tokens.view(-1)[at], step.batch(tables, at), self.kv)
        logits, tokens = self.model.logits, tables.tokens
        result.prompt = list(prompt_logprobs(logits, hidden, step, tokens, self.rules, self._block))
        result.choices = self._sample(hidden, step)
        return result

    def _sample(self, hidden: Tensor, step: Step) -> list[Choice]:
        """Samples in blocks of lines and writes the ids to the token table."""
        last, rows, positions = step.sampled_lines, step.rows[step.sampled], step.ends[step.sampled].astype(np.int64)
        if len(last) < hidden.shape[0]:
            hidden = hidden[self._put(last)]
        choices = []
        for start in range(0, len(last), self._block):
            part = slice(start, start + self._block)
            choice = self.sampler.choose(self.model.logits(hidden[part]), rows[part], positions[part])
            at = self._put(self.tables.flat(rows[part], positions[part]))
            self.tables.tokens.view(-1)[at] = choice.ids.int()
            choices.append(choice)
        return choices

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, under way."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _report(result: _Result) -> StepDone:
    top, first = [], 0
    for choice in result.choices:
        for lines, (ids, logprobs) in choice.top:
            columns = zip(lines.tolist(), _int32(ids), _float32(logprobs), strict=True)
            top += [(first + line, best.tobytes(), scores.tobytes()) for line, best, scores in columns]
        first += choice.ids.shape[0]
    return StepDone(
        step=result.step,
        ids=b"".join(_int32(choice.ids).tobytes() for choice in result.choices),
        logprobs=b"".join(_float32(choice.logprobs).tobytes() for choice in result.choices),
        top=tuple(sorted(top)),
        prompt=tuple(
            (chunk.sequence, _float32(chunk.logprobs).tobytes(), *_top_bytes(chunk.top)) for chunk in result.prompt
        ),
        seconds=result.seconds,
    )


def _top_bytes(top: Alternatives | None) -> tuple[bytes, bytes]:
    return (_int32(top[0]).tobytes(), _float32(top[1]).tobytes()) if top else (b"", b"")


def _int32(ids: Tensor) -> np.ndarray:
    return ids.cpu().numpy().astype("<i4")


def _float32(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype("<f4", copy=False)
