"""AWQ and GPTQ checkpoints, presented as if they held plain weights: `X.weight` for `X.qweight`, `X.scales` and so on.

Projections with a `qweight` are packed, the others plain. Format: eight 4-bit codes in an int32, the first in the
lowest bits. GPTQ packs along the inputs ([k / 8, n]) and gives each input's group in `g_idx`; AWQ packs along the
outputs ([k, n / 8]) with output `AWQ_ORDER[i]` of eight in place i. In both, zero points are packed along the outputs
and scales are [groups, n].
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import torch
from torch import Tensor

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.quantised import GroupedWeight
from lightllm_mp.models.checkpoint.files import Checkpoint
from lightllm_mp.models.checkpoint.quant_config import QuantConfig

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
EACH = 8
"""Codes in an int32."""


class PackedCheckpoint:
    """A checkpoint whose `stream` unpacks on `device`. A bias that is not in `wanted`, the model's tensor names, is
    ignored if it is zero: old GPTQ files have one for every projection."""

    def __init__(
        self, inner: Checkpoint, packing: QuantConfig, wanted: set[str], *, device: torch.device | str, where: str
    ) -> None:
        self._inner = inner
        self._packing = packing
        self._device = device
        self._where = where
        self._parts: dict[str, list[str]] = {}
        self._part_of: dict[str, str] = {}
        self.shapes, self.sizes = dict(inner.shapes), dict(inner.sizes)
        for name in inner.shapes:
            if name.endswith(".qweight"):
                self._join(name.removesuffix(".qweight"))
        biases = {stem + ".bias" for stem in self._parts} & self.shapes.keys()
        self._zero = biases - wanted
        for name in self._zero:
            del self.shapes[name], self.sizes[name]

    def _join(self, stem: str) -> None:
        """Replaces the parts of `stem.weight` by the whole."""
        whole = stem + ".weight"
        if whole in self.shapes:
            raise ModelError(f"{self._where}: tensor {whole} is both packed and plain")
        expected = self._expected(stem)
        for name, shape in expected.items():
            if self.shapes.get(name) != shape:
                found = list(self.shapes[name]) if name in self.shapes else "missing"
                raise ModelError(f"{self._where}: tensor {name} is {found}, expected is {list(shape)}")
        self._parts[stem] = list(expected)
        self.sizes[whole] = 0
        for name in expected:
            self._part_of[name] = stem
            del self.shapes[name]
            self.sizes[whole] += self.sizes.pop(name)
        self.shapes[whole] = self._shape(stem)

    def _shape(self, stem: str) -> tuple[int, int]:
        rows, columns = self._inner.shapes[stem + ".qweight"]
        return (columns, rows * EACH) if self._packing.method == "gptq" else (columns * EACH, rows)

    def _expected(self, stem: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of a packed weight."""
        if len(self._inner.shapes[stem + ".qweight"]) != 2:
            raise ModelError(f"{self._where}: tensor {stem}.qweight is not a matrix")
        n, k = self._shape(stem)
        groups = self._packing.groups(k)
        expected: dict[str, tuple[int, ...]] = {
            stem + ".qweight": self._inner.shapes[stem + ".qweight"],
            stem + ".qzeros": (groups, n // EACH),
            stem + ".scales": (groups, n),
        }
        if stem + ".g_idx" in self.shapes:
            expected[stem + ".g_idx"] = (k,)
        return expected

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Iterator[tuple[str, Tensor | GroupedWeight]]:
        """Yields plain tensors as they are read and packed weights when all their parts are read."""
        stems = {stem for stem in self._parts if stem + ".weight" in wanted}
        names = (wanted & self._inner.shapes.keys()) | self._zero
        names |= {name for stem in stems for name in self._parts[stem]}
        waiting: dict[str, dict[str, Tensor]] = {stem: {} for stem in stems}
        for name, tensor in self._inner.stream(names, partly & self._inner.shapes.keys() - self._zero):
            stem = self._part_of.get(name)
            if stem is not None:
                waiting[stem][name.rpartition(".")[2]] = tensor.to(self._device)
                if len(waiting[stem]) == len(self._parts[stem]):
                    yield stem + ".weight", self._unpacked(stem, waiting.pop(stem))
            elif name in self._zero:
                if tensor.any():
                    raise ModelError(f"{self._where}: tensor {name} is not zero, and the model has no such bias")
            else:
                yield name, tensor

    def _unpacked(self, stem: str, parts: dict[str, Tensor]) -> GroupedWeight:
        n, k = self._shape(stem)
        codes, zeros = _codes(parts["qweight"]), _codes(parts["qzeros"])
        if self._packing.method == "gptq":
            codes = codes.permute(1, 0, 2).reshape(n, k)
        else:
            places = torch.tensor(AWQ_ORDER, device=codes.device).argsort()
            codes, zeros = codes[:, :, places].reshape(k, n).t(), zeros[:, :, places]
        zeros = (zeros.reshape(-1, n) + self._packing.zero_offset) & 15
        return GroupedWeight(
            codes.contiguous(),
            parts["scales"].t().contiguous(),
            zeros.t().contiguous(),
            self._group_of(stem, k, parts.get("g_idx")),
        )

    def _group_of(self, stem: str, k: int, named: Tensor | None) -> Tensor:
        groups = self._packing.groups(k)
        if named is None:
            each = k if self._packing.group < 0 else self._packing.group
            return torch.arange(k, device=self._device, dtype=torch.int32) // each
        if named.numel() and not 0 <= int(named.min()) <= int(named.max()) < groups:
            raise ModelError(f"{self._where}: tensor {stem}.g_idx has groups beyond {groups - 1}")
        return named.to(torch.int32)


def _codes(packed: Tensor) -> Tensor:
    """int32 [a, b] -> uint8 [a, b, 8], lowest bits first."""
    halves = packed.contiguous().view(torch.uint8)
    return torch.stack((halves & 15, halves >> 4), dim=-1).view(*packed.shape, EACH)
