"""Random weights for benchmarks (`--load-format dummy`): only the configuration of a model folder is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Set

import torch

from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.models.checkpoint.assembly import may_be_scaled
from lightllm_mp.models.checkpoint.files import Tensors
from lightllm_mp.models.checkpoint.quant_config import QuantConfig
from lightllm_mp.models.checkpoint.weight_rules import Param

DEVIATION = 0.02
SCALE = DEVIATION / 64
"""Of values in 8 bits, the largest of which is 448."""


class RandomWeights:
    """A `Checkpoint` of random tensors, made on the device: matrices are normal around 0, norms `norm`, biases 0.

    Projections that `config` declares as 8-bit values with scales are that. A tensor depends on its name alone, so all
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
    ) -> None:
        params, self._norm, self._config = list(params), norm, config
        self._device, self._dtype = torch.device(device), dtype
        self._targets = {piece.name: param.target for param in params for piece in param.pieces}
        self.shapes = {piece.name: piece.file_shape for param in params for piece in param.pieces}
        self.quantised: Set[str] = {name for name, target in self._targets.items() if self._is_scaled(name, target)}
        self.sizes = {
            name: math.prod(shape) * (1 if name in self.quantised else dtype.itemsize)
            for name, shape in self.shapes.items()
        }

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for name, target in self._targets.items():
            if name in wanted:
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
        seed = zlib.crc32(name.encode())
        return made.normal_(0.0, DEVIATION, generator=torch.Generator(self._device).manual_seed(seed))

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
