"""Interfaces of the executor: the decoder (Model) and the code that runs its steps on a device (StepRunner)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.torch_sampler import Choice
from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.parallel.group import RankGroup
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.plan import Plan


class Model(Protocol):
    """A decoder (models/decoder/decoder.py). The executor overwrites what `logits` returns."""

    spec: ModelSpec
    group: RankGroup

    @property
    def dtype(self) -> torch.dtype: ...

    def reserve(self, positions: int) -> None: ...

    def forward(
        self, ids: Tensor, batch: Batch, kv: KVPool, images: Sequence[ImageRows] = (), *, ends_only: bool = False
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def pool(self, hidden: Tensor) -> Tensor: ...


class StepRunner(Protocol):
    """Runs steps on one kind of device: TorchSteps (plain torch) or CudaSteps (Triton and CUDA graphs).

    The executor calls, for each step in order: `begin`; `forward` if the plan has sequences; and if some are sampled,
    `last`, then `sample` for each part of them. On a GPU no call waits for the device. Tensors are on the device of the
    row tables. A result is valid until the next `begin`.
    """

    def capture(self, largest_only: bool = False) -> None:
        """Captures decode steps as graphs, if the device has graphs: all sizes, or only the largest, to measure the
        memory that it needs. The executor calls it once, after warm-up and `clear`."""

    def clear(self) -> None:
        """Forgets all rows: their sampling rules, token ids and KV slots. KV memory stays as it is."""

    def begin(self, plan: Plan, step: Step | None) -> None:
        """Takes over the plan's sampling rules and writes its edits to the row tables. `step` holds the plan's
        sequences (None: it has none), and `step.ends_only` is set. ValueError for edits outside the tables."""

    def forward(self, step: Step, images: Sequence[ImageRows]) -> Tensor:
        """Runs the decoder over the step's tokens and writes their KV. `images` replace the embeddings of some tokens.

        Returns hidden states in the model's dtype: [tokens, hidden], or with `step.ends_only` [sequences, hidden], of
        each sequence's last token. The next `begin` or `forward` may overwrite them. The caller only reads them.
        """

    def last(self, hidden: Tensor, step: Step) -> Tensor:
        """The rows [sampled, hidden] of `hidden` to sample from, in the order of `step.sampled`. May be `hidden`."""

    def sample(self, logits: Tensor, step: Step, part: slice, masks: GuideMasks | None) -> Choice:
        """Samples the sequences `step.sampled[part]` and writes the ids to the token table, where the next step reads
        them. Overwrites `logits`, float32 [n, vocab]. `masks` say which ids some of these sequences may take. All ranks
        get rank 0's ids.

        Returns ids (int64 or int32) and float32 logprobs, [n] each, and alternatives. The caller may keep them.
        """
