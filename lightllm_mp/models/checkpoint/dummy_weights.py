"""Random weights for benchmarks (`--load-format dummy`): only the configuration of a model folder is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Set

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lightllm_mp.kernels.quantised import BlockRows, ScaledWeight
from lightllm_mp.models.checkpoint.assembly import EXPERTS, may_be_scaled
from lightllm_mp.models.checkpoint.files import Tensors
from lightllm_mp.models.checkpoint.quant_config import QuantConfig
from lightllm_mp.models.checkpoint.weight_rules import Param

DEVIATION = 0.02
SCALE = DEVIATION / 64
"""Of values in 8 bits, the largest of which is 448."""
BLOCK_SCALE = 120
"""Of a block in MXFP4, as stored: weights of about that deviation."""


class RandomWeights:
    """A `Checkpoint` of random tensors, made on the device: matrices are normal around 0, norms `norm`, biases 0.

    Projections that `config` declares as 8-bit values with scales are that. With `blocks` experts are random bits in
    MXFP4. A tensor depends on its name alone, so all
    ranks agree on it.
    """

    def __init__(
        self,
        params: Iterable[Param],
        *,
        norm: float = 1.0,
        device: torch.device | str,
        dtype: torch.dtype,
        config: QuantConfig | None = None,
        blocks: bool = False,
    ) -> None:
        params, self._norm, self._config = list(params), norm, config
        self._device, self._dtype = torch.device(device), dtype
        self._targets = {piece.name: param.target for param in params for piece in param.pieces}
        self.shapes = {piece.name: piece.file_shape for param in params for piece in param.pieces}
        experts = {name for name, target in self._targets.items() if blocks and target.endswith(EXPERTS)}
        self.in_blocks = dict.fromkeys(experts, GGMLQuantizationType.MXFP4)
        scaled = {name for name, target in self._targets.items() if self._is_scaled(name, target)}
        self.quantised: Set[str] = scaled | experts
        self.sizes = {
            name: math.prod(shape) * (1 if name in scaled else dtype.itemsize) for name, shape in self.shapes.items()
        } | {name: math.prod(self._bytes(name)) for name in experts}

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for name, target in self._targets.items():
            if name in wanted:
                if name in self.in_blocks:
                    yield name, self._blocks(name)
                    continue
                made = self._tensor(name, target)
                yield name, self._scaled(name, made) if name in self.quantised else made

    def _tensor(self, name: str, target: str) -> torch.Tensor:
        made = torch.empty(self.shapes[name], dtype=self._dtype, device=self._device)
        if target.endswith(".bias"):
            return made.zero_()
        if target.endswith("_scale"):
            return made.fill_(1.0)
        if target.endswith("norm"):
            return made.fill_(1.0 if target.endswith("delta.norm") else self._norm)  # it has no offset
        return made.normal_(0.0, DEVIATION, generator=self._generator(name))

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))

    def _bytes(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in blocks, as bytes."""
        inputs, size = GGML_QUANT_SIZES[self.in_blocks[name]]
        return *self.shapes[name][:-1], self.shapes[name][-1] // inputs * size

    def _blocks(self, name: str) -> BlockRows:
        kind, by, device = self.in_blocks[name], self._generator(name), self._device
        made = torch.randint(0, 256, self._bytes(name), dtype=torch.uint8, generator=by, device=device)
        made[..., :: GGML_QUANT_SIZES[kind][1]] = BLOCK_SCALE
        return BlockRows(made, kind)

    def _is_scaled(self, name: str, target: str) -> bool:
        module = name.removesuffix(".weight")
        if self._config is None or len(self.shapes[name]) != 2 or not may_be_scaled(target):
            return False
        if self._config.ignores(module):
            return False
        return self._config.scheme_of(module).form == "scaled"

    def _scaled(self, name: str, made: torch.Tensor) -> ScaledWeight:
        """Scales are equal, in as many groups of inputs as the file would have."""
        assert self._config is not None
        block, (n, k) = self._config.scheme_of(name.removesuffix(".weight")).block, made.shape
        group = block[1] if block is not None and block[1] < k else 0
        values = (made.float() / SCALE).to(torch.float8_e4m3fn)
        return ScaledWeight(values, torch.full((n, -(-k // (group or k))), SCALE, device=self._device), group)
