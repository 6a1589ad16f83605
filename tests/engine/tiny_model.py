"""A one-layer transformer that is easy to compute by hand, and a driver that writes plans for it as a router does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.executor import Executor
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.messages import Sampling, StepDone
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.parallel.group import SingleRank
from lightllm_mp.models.spec import ModelSpec, RopeSpec
from lightllm_mp.plan import NO_STATE, PlanBuilder

HIDDEN = 16


def spec(vocab: int = 40, max_context: int = 64) -> ModelSpec:
    return ModelSpec(
        family="tiny",
        vocab=vocab,
        hidden=HIDDEN,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=HIDDEN,
        intermediate=HIDDEN,
        norm_eps=1e-5,
        rope=RopeSpec(theta=1e4, dim=HIDDEN),
        max_context=max_context,
        eos_ids=(0,),
    )


class TinyModel:
    """Embedding plus position, one attention head over the KV pool, and the embedding as head."""

    dtype = torch.float32
    group = SingleRank()

    def __init__(self, vocab: int = 40, max_context: int = 64) -> None:
        self.spec = spec(vocab, max_context)
        noise = torch.Generator().manual_seed(3)
        self.embed = torch.randn(vocab, HIDDEN, generator=noise)
        self.place = torch.randn(max_context + 1, HIDDEN, generator=noise)
        self.steps: list[int] = []
        """Tokens of each forward pass."""
        self.ends_only: list[bool] = []
        """Whether each forward pass needed only the sequences' last tokens."""
        self.widest = 0
        """Most rows of logits requested at once."""

    def reserve(self, positions: int) -> None:
        assert positions <= len(self.place)

    def forward(
        self, ids: Tensor, batch: Batch, kv: KVPool, images: Sequence[ImageRows] = (), *, ends_only: bool = False
    ) -> Tensor:
        self.steps.append(len(ids))
        self.ends_only.append(ends_only)
        x = self.embed[ids.long().clamp(max=self.spec.vocab - 1) if images else ids.long()]
        for line, rows in images:
            x[line : line + len(rows)] = rows
        x += self.place[batch.positions.long()]
        kv.layers[0].keys[batch.slots.long(), 0] = x
        kv.layers[0].values[batch.slots.long(), 0] = x.roll(1, -1)
        out = torch.empty_like(x)
        for i in range(batch.sequences):
            lines = slice(int(batch.seq_start[i]), int(batch.seq_start[i + 1]))
            slots = batch.slot_table[int(batch.rows[i]), : int(batch.context[i])].long()
            seen = torch.arange(len(slots)) <= batch.positions[lines, None]
            scores = (x[lines] @ kv.layers[0].keys[slots, 0].T).masked_fill(~seen, float("-inf"))
            out[lines] = x[lines] + scores.softmax(-1) @ kv.layers[0].values[slots, 0]
        return out[batch.seq_start[1:].long() - 1] if ends_only else out

    def logits(self, hidden: Tensor) -> Tensor:
        self.widest = max(self.widest, len(hidden))
        return hidden @ self.embed.T

    def whole(self, ids: list[int]) -> Tensor:
        """float32 [len(ids), vocab]: the logits of a sequence computed at once, without slots and plans."""
        x = self.embed[ids] + self.place[: len(ids)]
        seen = torch.ones(len(ids), len(ids)).tril().bool()
        weights = (x @ x.T).masked_fill(~seen, float("-inf")).softmax(-1)
        return (x + weights @ x.roll(1, -1)) @ self.embed.T


@dataclass
class Running:
    """A sequence as its router knows it."""

    row: int
    prompt: list[int]
    sampling: Sampling
    produced: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    computed: int = 0
    logprobs: list[float] = field(default_factory=list)


class Driver:
    """Writes plans, assigns slots in random order, and keeps the executor's answers."""

    def __init__(self, executor: Executor, slots: int) -> None:
        self.executor, self.step_number = executor, 0
        self.free = np.random.default_rng(2).permutation(slots).tolist()

    def step(self, work: list[tuple[Running, int]]) -> StepDone:
        """Computes the next `count` tokens of each sequence; one is sampled when all its known ids are computed."""
        builder, sampled = PlanBuilder(self.step_number), []
        for running, count in sorted(work, key=lambda item: item[1] > 1):
            if self._add(builder, running, count):
                sampled.append(running)
        self.executor.submit(builder.pack())
        done = self.executor.collect()
        assert done.step == self.step_number
        self.step_number += 1
        ids, logprobs = np.frombuffer(done.ids, "<i4"), np.frombuffer(done.logprobs, "<f4")
        for running, token, logprob in zip(sampled, ids.tolist(), logprobs.tolist(), strict=True):
            running.produced.append(token)
            running.logprobs.append(logprob)
        return done

    def _add(self, builder: PlanBuilder, running: Running, count: int) -> bool:
        start, ids = running.computed, running.prompt + running.produced
        if not start:
            builder.setup(running.row, len(running.prompt), running.sampling)
            builder.write_ids(running.row, 0, np.array(ids))
            if self.executor.kv.states is not None:
                builder.state(running.row, 0, NO_STATE)
        fresh = [self.free.pop() for _ in range(count)]
        builder.write_slots(running.row, start, np.array(fresh))
        running.slots += fresh
        running.computed += count
        sample = running.computed == len(ids)
        builder.add(running.row, start, count, sample=sample)
        return sample

    def generate(self, running: Running, tokens: int, chunk: int = 1000) -> list[int]:
        """Runs one sequence alone until it has produced `tokens` more tokens."""
        target = len(running.produced) + tokens
        while len(running.produced) < target:
            left = len(running.prompt) + len(running.produced) - running.computed
            self.step([(running, min(left, chunk))])
        return running.produced


def broken_beside(driver: Driver, prompts: list[list[int]], samplings: Sequence[Sampling]) -> list[Running]:
    """Decodes the sequences together after the KV of the second one has become NaN."""
    running = [Running(row, ids, sampling) for row, (ids, sampling) in enumerate(zip(prompts, samplings, strict=True))]
    for each in running:
        driver.step([(each, len(each.prompt))])
    driver.executor.kv.data[:, :, torch.tensor(running[1].slots)] = float("nan")
    for _ in range(6):
        driver.step([(each, 1) for each in running])
    return running


def check_broken(broken: list[Running], whole: list[Running]) -> None:
    """The second sequence's logprobs are NaN from its second token on; the rest equals `whole`."""
    assert np.isnan(broken[1].logprobs[1:]).all()
    assert broken[1].produced[1:] == [0] * 6
    for one, other in ((broken[0], whole[0]), (broken[2], whole[2])):
        assert (one.produced, one.logprobs) == (other.produced, other.logprobs)
        assert not np.isnan(one.logprobs).any()
