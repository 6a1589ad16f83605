"""What the executor needs of a decoder (see models/decoder/decoder.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.parallel.group import RankGroup
from lightllm_mp.models.spec import ModelSpec


class Model(Protocol):
    """The executor overwrites what `logits` returns."""

    spec: ModelSpec
    group: RankGroup

    @property
    def dtype(self) -> torch.dtype: ...

    def reserve(self, positions: int) -> None: ...

    def forward(
        self, ids: Tensor, batch: Batch, kv: KVPool, images: Sequence[ImageRows] = (), *, ends_only: bool = False
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def scores(self, hidden: Tensor) -> Tensor: ...
