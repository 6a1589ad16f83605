"""Random weights for benchmarks (`--load-format dummy`): only the configuration of a model folder is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Set

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lightllm_mp.kernels.quantised import BlockRows
from lightllm_mp.models.checkpoint.assembly import EXPERTS
from lightllm_mp.models.checkpoint.files import Tensors
from lightllm_mp.models.checkpoint.weight_rules import Param

DEVIATION = 0.02
SCALE = 120
"""Of a block in MXFP4: weights of about that deviation."""


class RandomWeights:
    """A `Checkpoint` of random tensors, made on the device: matrices are normal around 0, norms `norm`, biases 0; with
    `blocks` experts have random bits in MXFP4.

    A tensor depends on its name alone, so all ranks agree on it.
    """

    def __init__(
        self,
        params: Iterable[Param],
        *,
        norm: float = 1.0,
        blocks: bool = False,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        params, self._norm = list(params), norm
        self._device, self._dtype, self._width = torch.device(device), dtype, dtype.itemsize
        self._targets = {piece.name: param.target for param in params for piece in param.pieces}
        self.shapes = {piece.name: piece.stored or piece.shape for param in params for piece in param.pieces}
        experts = {name for name, target in self._targets.items() if blocks and target.endswith(EXPERTS)}
        self.in_blocks = dict.fromkeys(experts, GGMLQuantizationType.MXFP4)
        self.quantised: Set[str] = self.in_blocks.keys()
        self.sizes = {name: self._size(name) for name in self.shapes}

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for name, target in self._targets.items():
            if name in wanted:
                yield name, self._tensor(name, target)

    def _size(self, name: str) -> int:
        return math.prod(self._bytes(name)) if name in self.in_blocks else math.prod(self.shapes[name]) * self._width

    def _bytes(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in blocks, as bytes."""
        inputs, size = GGML_QUANT_SIZES[self.in_blocks[name]]
        return *self.shapes[name][:-1], self.shapes[name][-1] // inputs * size

    def _tensor(self, name: str, target: str) -> torch.Tensor | BlockRows:
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        if name in self.in_blocks:
            kind, device = self.in_blocks[name], self._device
            made = torch.randint(0, 256, self._bytes(name), dtype=torch.uint8, generator=generator, device=device)
            made[..., :: GGML_QUANT_SIZES[kind][1]] = SCALE
            return BlockRows(made, kind)
        made = torch.empty(self.shapes[name], dtype=self._dtype, device=self._device)
        if target.endswith(".bias"):
            return made.zero_()
        if target.endswith("norm"):
            return made.fill_(1.0 if target.endswith("delta.norm") else self._norm)  # it has no offset
        return made.normal_(0.0, DEVIATION, generator=generator)
