"""What the executor needs of a decoder and of the code that carries out its steps."""

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
    """How steps are carried out on one kind of device: TorchSteps (plain torch) or CudaSteps (Triton and CUDA graphs).

    The executor calls, for each step in order: `begin`; if the plan has sequences `forward` and, if some are sampled,
    `last`, then `sample` for each part of them. Nothing of this waits for the device on a GPU. Tensors are on the
    device of the row tables; what a call returns is valid until the next `begin`.
    """

    def capture(self, largest_only: bool = False) -> None:
        """Captures decode steps as graphs, if the device has graphs: of all sizes, or of the largest to see what memory
        it needs. The executor calls it once, after warm-up and `clear`."""

    def clear(self) -> None:
        """Forgets all rows: their sampling rules, token ids and KV slots. KV memory stays as it is."""

    def begin(self, plan: Plan, step: Step | None) -> None:
        """Takes over the plan's sampling rules and writes its edits to the row tables. `step` holds the plan's
        sequences (None: it has none), and `step.ends_only` is set. ValueError for what lies outside the tables."""

    def forward(self, step: Step, images: Sequence[ImageRows]) -> Tensor:
        """Runs the decoder over the step's tokens and writes their KV. `images` replace embeddings of some tokens.

        Returns hidden states in the model's dtype: [tokens, hidden], or with `step.ends_only` [sequences, hidden], of
        each sequence's last token. The next `begin` or `forward` may overwrite them; the caller only reads.
        """

    def last(self, hidden: Tensor, step: Step) -> Tensor:
        """The rows [sampled, hidden] of `hidden` that are sampled from, in the order of `step.sampled`; it may be
        `hidden` itself."""

    def sample(self, logits: Tensor, step: Step, part: slice, masks: GuideMasks | None) -> Choice:
        """Samples the sequences `step.sampled[part]` and writes the ids to the token table, where the next step finds
        them. `logits` float32 [n, vocab] are overwritten. `masks` say which ids some of the part may take. All ranks
        get rank 0's ids.

        Returns ids (int64 or int32) and float32 logprobs, [n] each, and alternatives; the caller may keep them.
        """
