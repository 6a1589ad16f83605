"""The definition of sampling, in float64 and one row at a time, and a way to run the real sampler on a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.rules import RuleTable
from lightllm_mp.engine.sampling.torch_sampler import Choice, TorchSampler
from lightllm_mp.messages import Sampling
from lightllm_mp.plan import PlanBuilder, unpack

CPU = torch.device("cpu")


@dataclass
class Line:
    """A sequence to sample."""

    logits: np.ndarray
    sampling: Sampling
    prompt: list[int] = field(default_factory=lambda: [0])
    produced: list[int] = field(default_factory=list)
    masked: tuple[int, ...] = ()
    guide: tuple[int, ...] | None = None
    """The ids that its mask allows."""

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.produced)


def bias(values: dict[int, float]) -> dict[str, bytes]:
    """The two bias fields of a Sampling."""
    ids, amounts = np.array(list(values), "<i4"), np.array(list(values.values()), "<f4")
    return {"bias_ids": ids.tobytes(), "bias_values": amounts.tobytes()}


def only(*ids: int) -> dict[str, bytes]:
    """The field of a Sampling that allows only `ids`."""
    return {"allowed_ids": np.array(ids, "<i4").tobytes()}


def sampler_for(lines: Sequence[Line], rows: Sequence[int]) -> TorchSampler:
    """A sampler whose tables hold `lines`, each in its row."""
    vocab, count = len(lines[0].logits), max(rows) + 1
    tokens = torch.full((count, max(line.position for line in lines) + 1), -7, dtype=torch.int32)
    rules, builder = RuleTable(count, vocab, CPU), PlanBuilder(0)
    for line, row in zip(lines, rows, strict=True):
        tokens[row, : line.position] = torch.tensor(line.prompt + line.produced, dtype=torch.int32)
        builder.setup(row, len(line.prompt), line.sampling, line.masked, guided=line.guide is not None)
    for setup in unpack(builder.pack()).setups:
        rules.set(setup)
    return TorchSampler(rules, tokens)


def choose(lines: Sequence[Line], rows: Sequence[int] | None = None) -> Choice:
    """One step over `lines`, which have these `rows` of the tables (by default 0, 1, ..)."""
    rows = range(len(lines)) if rows is None else rows
    logits = torch.from_numpy(np.stack([line.logits for line in lines]).astype(np.float32))
    positions = np.array([line.position for line in lines], np.int64)
    with torch.inference_mode():
        return sampler_for(lines, rows).choose(logits, np.array(rows, np.int32), positions, masks_of(lines))


def adjusted(line: Line) -> np.ndarray:
    """float64 logits after bias, penalties, banned and allowed ids, and masks."""
    rules, x = line.sampling, line.logits.astype(np.float64)
    np.add.at(x, np.frombuffer(rules.bias_ids, "<i4"), np.frombuffer(rules.bias_values, "<f4").astype(np.float64))
    for token in set(counted := (line.prompt if rules.penalize_prompt else []) + line.produced):
        x[token] = x[token] / rules.repetition_penalty if x[token] > 0 else x[token] * rules.repetition_penalty
        x[token] -= rules.presence_penalty + rules.frequency_penalty * counted.count(token)
    if len(line.produced) < rules.min_new_tokens:
        x[list(line.masked)] = -np.inf
    if len(allowed := np.frombuffer(rules.allowed_ids, "<i4")):
        x[np.isin(np.arange(len(x)), allowed, invert=True)] = -np.inf
    if line.guide is not None:
        x[np.isin(np.arange(len(x)), line.guide, invert=True)] = -np.inf
    return x


def masks_of(lines: Sequence[Line]) -> GuideMasks | None:
    """The masks of a step over `lines`; None if none has one."""
    vocab = len(lines[0].logits)
    guided = [index for index, line in enumerate(lines) if line.guide is not None]
    bits = np.zeros((len(guided), -(-vocab // 32) * 32), np.uint8)
    for row, index in enumerate(guided):
        bits[row, list(lines[index].guide or ())] = 1
    packed = np.packbits(bits, axis=1, bitorder="little").tobytes()
    return GuideMasks.of(np.array(guided, np.int64), packed, vocab) if guided else None


def distribution(line: Line) -> np.ndarray:
    """float64 [vocab]: the probabilities of the next token."""
    rules, x = line.sampling, adjusted(line)
    if rules.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x = x / rules.temperature
    if 0 < rules.top_k < len(x):
        x[x < np.sort(x)[-rules.top_k]] = -np.inf
    p = softmax(x)
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= rules.top_p]] = 0
    p[p < rules.min_p * p.max()] = 0
    return p / p.sum()


def softmax(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # some tests give it broken logits
        p = np.exp(x - x.max())
    return p / p.sum()
