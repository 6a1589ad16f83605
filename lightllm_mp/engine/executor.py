"""Runs step plans on one device: row tables, forward pass, sampling. It knows rows and slots, not requests.

Token ids stay on the device within and between steps. Sampled ids go into the token table, where the next step's
forward pass reads them; they go to the host only for the report.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.image_embeddings import ImageEmbeddings
from lightllm_mp.engine.interfaces import Model, StepRunner
from lightllm_mp.engine.pooling import Pooler
from lightllm_mp.engine.row_tables import RowTables
from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.logprobs import Alternatives
from lightllm_mp.engine.sampling.prompt_logprobs import ChunkLogprobs, prompt_logprobs
from lightllm_mp.engine.sampling.rules import GUIDE, Lines, RuleTable
from lightllm_mp.engine.sampling.torch_sampler import Choice
from lightllm_mp.engine.state_moves import StateMoves
from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.engine.torch_steps import TorchSteps
from lightllm_mp.engine.warm_up import HARDEST, SHORT, warm_up_plans
from lightllm_mp.messages import StepDone
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.length_class import class_firsts
from lightllm_mp.models.decoder.state_pool import StatePool
from lightllm_mp.plan import Plan, unpack

LOGIT_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Elements in a block of logits. On a CPU few enough that memory is reused from step to step (beyond 32 MiB the
allocator asks the system each time), on a GPU enough that the head's weights are read once."""
NO_LINES = np.empty(0, np.int64)
PROMPT_LINES = 64
"""Compute prompt logits in blocks of max(rows, PROMPT_LINES) tokens: with their logprobs they need no more memory than
the decode step, sampler included, that sized the pool."""


@dataclass(slots=True)
class _Result:
    """A step's answer on its way to the host. It is complete when the event `arrived` (CUDA only) has happened."""

    step: int
    choices: list[Choice]
    prompt: list[ChunkLogprobs]
    pooled: Tensor | None = None
    """Float32 [pooled, width]: one row per pooled sequence."""
    seconds: float = 0.0
    began: torch.cuda.Event | None = None
    arrived: torch.cuda.Event | None = None

    def send_to_host(self) -> None:
        """Queues the copies right after the step, so that reading them does not wait for a later step."""
        for choice in self.choices:
            choice.ids, choice.logprobs = _pinned(choice.ids), _pinned(choice.logprobs)
            choice.top = [(lines, (_pinned(ids), _pinned(best))) for lines, (ids, best) in choice.top]
        for chunk in self.prompt:
            chunk.logprobs = _pinned(chunk.logprobs)
            chunk.top = chunk.top and (_pinned(chunk.top[0]), _pinned(chunk.top[1]))
        self.pooled = None if self.pooled is None else _pinned(self.pooled)
        self.arrived = torch.cuda.Event(enable_timing=True)
        self.arrived.record()


@dataclass(slots=True)
class _Halted:
    """A step whose logits are being computed and whose sampling waits for masks."""

    step: int
    rest: Generator[Lines, GuideMasks | None, _Result]
    lines: Lines
    """The constrained sequences among the sampled ones."""
    seconds: float


class Executor:
    """Runs plans in the order of `submit`; `collect` returns answers in the same order.

    A step with constrained sequences computes its logits and then waits for `resume`; the next `submit` comes after
    that. Only rank 0 waits, because all ranks take its ids.

    Device memory: the KV pool of `kv_tokens` slots and a spare one, and two tables of `rows` rows. A row holds up to
    `max_context` tokens, a step up to `step_tokens`. With `window_tokens`, layers with windows have a table of their
    own, that many slots of their own, and a spare slot. Models with recurrent layers also have the states of the rows,
    a spare state, and `state_checkpoints` copies.
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
        kv_dtype: torch.dtype | None = None,
        state_checkpoints: int = 0,
        window_tokens: int = 0,
    ) -> None:
        self.device = torch.device(device)
        self.model = model
        self.rows, self.max_context, self.step_tokens = rows, max_context, step_tokens
        self.kv = self._pool(kv_tokens, kv_dtype or model.dtype, state_checkpoints, window_tokens)
        # The token sampled after a full context also has a position, but no step computes it.
        self._sections = model.spec.rope is not None and bool(model.spec.rope.sections)
        firsts = class_firsts(model.spec)
        spaces = len(self.kv.spare_slots)
        self.tables = RowTables(rows, max_context + 1, self.device, firsts, shifted=self._sections, spaces=spaces)
        self.rules = RuleTable(rows, model.spec.vocab, self.device)
        self._steps = _steps(self.device)(model, self.tables, self.rules, self.kv)
        self._pooler = Pooler(model, rows, self.device) if model.spec.pooling is not None else None
        self._block = logit_lines(model.spec.vocab, self.device)
        self._prompt_block = min(self._block, max(rows, PROMPT_LINES))
        self._results: deque[_Result] = deque()
        self._halted: _Halted | None = None
        self._images: ImageEmbeddings | None = None

    def _pool(self, slots: int, dtype: torch.dtype, checkpoints: int, window_slots: int) -> KVPool:
        spec, states = self.model.spec, None
        if spec.delta is not None:
            states = StatePool(spec, self.rows, checkpoints, dtype=self.model.dtype, device=self.device)
        return KVPool(spec, slots, dtype=dtype, device=self.device, states=states, window_slots=window_slots)

    def images(self, view: memoryview) -> None:
        """Sets the memory in which plans find image embeddings. Called once, before the first plan with images. Keeps
        `view`."""
        spec = self.model.spec
        self._images = ImageEmbeddings(
            view, hidden=spec.hidden, deepstack=spec.deepstack, dtype=self.model.dtype, device=self.device
        )

    @torch.inference_mode()
    def submit(self, plan: bytes) -> None:
        """Starts a step. ValueError for bytes that are not a plan or that reach outside the tables, RuntimeError while
        a step waits for masks."""
        if self._halted is not None:
            raise RuntimeError(f"submit while step {self._halted.step} waits for masks")
        began = time.perf_counter()
        todo = unpack(bytearray(plan))  # torch does not wrap read-only memory
        steps = self._run(todo)
        try:
            lines = next(steps)
        except StopIteration as end:
            self._finish(end.value, time.perf_counter() - began)
        else:
            self._halted = _Halted(todo.step, steps, lines, time.perf_counter() - began)

    @property
    def waiting(self) -> int | None:
        """The step that waits for its masks; None if no step waits."""
        return self._halted.step if self._halted is not None else None

    @torch.inference_mode()
    def resume(self, bits: bytes | None) -> None:
        """Goes on with the waiting step. `bits`: one mask per constrained sequence that it samples, in plan order
        (`messages.Masks`). None: the sequences are unconstrained, for a step whose answer is not used. ValueError for a
        wrong length."""
        if (halted := self._halted) is None:
            raise RuntimeError("no step waits for masks")
        began = time.perf_counter()
        masks = None if bits is None else GuideMasks.of(halted.lines, bits, self.model.spec.vocab)
        self._halted = None
        try:
            halted.rest.send(masks)
        except StopIteration as end:
            self._finish(end.value, halted.seconds + time.perf_counter() - began)

    def _finish(self, result: _Result, seconds: float) -> None:
        if self.device.type == "cuda":
            result.send_to_host()
        result.seconds = seconds
        self._results.append(result)

    def run(self, plan: bytes) -> StepDone:
        """Runs a plan at once, with masks that allow every id."""
        self.submit(plan)
        if self._halted is not None:
            self.resume(b"\xff" * (4 * -(-self.model.spec.vocab // 32) * len(self._halted.lines)))
        return self.collect()

    @property
    def pending(self) -> int:
        """Number of steps that are submitted and not yet collected."""
        return len(self._results)

    @property
    def ready(self) -> bool:
        """Whether `collect` returns without waiting for the device."""
        return bool(self._results) and (self._results[0].arrived is None or self._results[0].arrived.query())

    def collect(self) -> StepDone:
        """Answers the oldest pending step. RuntimeError if no step is pending."""
        if not self._results:
            raise RuntimeError("collect without submit")
        result = self._results.popleft()
        if result.arrived is not None:
            result.arrived.synchronize()
            if result.began is not None:
                result.seconds = result.began.elapsed_time(result.arrived) / 1e3
        return _report(result)

    @torch.inference_mode()
    def warm_up(self, *, probe_tokens: int | None = None) -> None:
        """On a GPU: runs the worst steps, so that later steps find memory allocated and kernels compiled, and captures
        decode steps as graphs. With `probe_tokens` it measures what steps need beside a pool of that many tokens, and
        captures only the largest graph. On a CPU, where memory is computed (step_memory.py): runs small steps.

        Writes only to the pool's spare slots, and forgets its rows. Call it before the first plan.
        """
        if self.device.type == "cpu":
            self._warm_up_small()
        else:
            self._run_worst_steps(probe_tokens or self.kv.slots)
        self.reset()
        if self._pooler is None:
            self._steps.capture(largest_only=probe_tokens is not None)

    def _run_worst_steps(self, kv_tokens: int) -> None:
        self._run_unseen(
            rows=self.rows,
            max_context=self.max_context,
            step_tokens=self.step_tokens,
            kv_tokens=kv_tokens,
        )

    def _warm_up_small(self) -> None:
        """Uses a pool of its own: a write to the spare slot of the real pool may allocate a huge page per layer."""
        steps, kv = self._steps, self.kv
        self.kv = self._pool(1, kv.data.dtype, 1, len(kv.spare_slots) - 1)
        self._steps = _steps(self.device)(self.model, self.tables, self.rules, self.kv)
        self._run_unseen(
            rows=min(self.rows, len(HARDEST)),
            max_context=min(self.max_context, SHORT),
            step_tokens=min(self.step_tokens, SHORT + 1),
            kv_tokens=kv.slots,
        )
        self._steps, self.kv = steps, kv

    def _run_unseen(self, **sizes: int) -> None:
        """Runs the steps of `warm_up_plans` and drops their answers."""
        states = self.kv.states
        checkpoint = states.first_checkpoint if states is not None and states.checkpoints else None
        pool = self._pooler is not None
        spare = self.kv.spare_slots
        for plan in warm_up_plans(
            spare_slots=spare, pool=pool, sections=self._sections, checkpoint=checkpoint, **sizes
        ):
            self.run(plan)

    @torch.inference_mode()
    def reset(self) -> None:
        """Forgets rows and pending steps. KV memory stays as it is."""
        self._results.clear()
        self._halted = None
        self._steps.clear()

    def _run(self, plan: Plan) -> Generator[Lines, GuideMasks | None, _Result]:
        """Runs a plan. If it has constrained sequences, yields them once and gets their masks."""
        step = Step.of(plan.seqs, self.tables, plan.rotary) if len(plan.seqs) else None
        images = self._rows_of_images(plan, step)
        states = StateMoves.of(plan.states, step, self.kv.states)
        if step is not None:
            step.state_saves = tuple(states.saved)
        self._steps.begin(plan, step)
        result = _Result(plan.step, [], [])
        if self.device.type == "cuda":
            result.began = torch.cuda.Event(enable_timing=True)
            result.began.record()
        if step is None:
            return result
        hidden = self._forward(step, images, states)
        if self._pooler is not None:
            result.pooled = self._pooler.rows(hidden, step)
            return result
        logits, tokens = self.model.logits, self.tables.tokens
        result.prompt = list(prompt_logprobs(logits, hidden, step, tokens, self.rules, self._prompt_block))
        last = self._steps.last(hidden, step)
        guided, masks = self._guided(step), None
        for start in range(0, len(step.sampled), self._block):
            part = slice(start, start + self._block)
            scores = logits(last[part])
            if len(guided) and not start:
                masks = yield guided
            result.choices.append(self._steps.sample(scores, step, part, masks and masks.part(part)))
        return result

    def _forward(self, step: Step, images: list[ImageRows], states: StateMoves) -> Tensor:
        if (pool := self.kv.states) is None:
            return self._steps.forward(step, images)
        pool.clear(states.cleared)
        pool.copy([*states.loaded.values()], [*states.loaded])
        hidden = self._steps.forward(step, images)
        pool.copy([*states.kept.values()], [*states.kept])
        return hidden

    def _guided(self, step: Step) -> Lines:
        """The constrained sequences among the sampled ones; none on ranks that take rank 0's ids."""
        if self.model.group.rank:
            return NO_LINES
        return np.flatnonzero(self.rules.needs[step.sampled_rows] & GUIDE)

    def _rows_of_images(self, plan: Plan, step: Step | None) -> list[ImageRows]:
        if not len(plan.images):
            return []
        if step is None or self._images is None:
            raise ValueError("a plan names images, but it has no sequences, or there is no image memory")
        return self._images.rows_of(plan.images, step)


def logit_lines(vocab: int, device: torch.device) -> int:
    """The most rows of logits that are computed at a time."""
    return max(1, LOGIT_ELEMENTS[device.type] // vocab)


def _steps(device: torch.device) -> Callable[[Model, RowTables, RuleTable, KVPool], StepRunner]:
    if device.type == "cpu" or not find_spec("triton"):
        return TorchSteps
    from lightllm_mp.engine.cuda_steps import CudaSteps  # needs triton

    return CudaSteps


def _pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory. The copy operation is queued."""
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
        pooled=b"" if result.pooled is None else _float32(result.pooled).tobytes(),
    )


def _top_bytes(top: Alternatives | None) -> tuple[bytes, bytes]:
    return (_int32(top[0]).tobytes(), _float32(top[1]).tobytes()) if top else (b"", b"")


def _int32(ids: Tensor) -> np.ndarray:
    return ids.cpu().numpy().astype("<i4")


def _float32(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype("<f4", copy=False)
