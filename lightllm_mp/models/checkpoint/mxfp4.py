"""MXFP4 checkpoints (gpt-oss), presented as if they held plain weights: `X` for `X_blocks` and `X_scales`.

A block is 32 floats of 4 bits (E2M1) and a scale, 2^(byte - 127): OCP Microscaling Formats 1.0. Of `X_blocks`
[..., rows, blocks, 16] byte j holds elements 2 j (low half) and 2 j + 1; ggml's blocks of the same type begin with the
scale, and their byte j holds elements j and j + 16. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType

from lightllm_mp.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from lightllm_mp.models.checkpoint.files import FileTensors

METHOD = "mxfp4"
"""`quant_method` of such checkpoints."""
INPUTS, HALF = 32, 16
"""Elements of a block, and its bytes without the scale."""
BLOCKS, SCALES = "_blocks", "_scales"


def is_mxfp4(config: dict[str, Any]) -> bool:
    given = config.get("quantization_config")
    return isinstance(given, dict) and given.get("quant_method") == METHOD


def joined_blocks(shapes: dict[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, with blocks and scales joined. Raises ModelError where one does not fit the other."""
    joined = dict(shapes)
    for name in [name for name in shapes if name.endswith(BLOCKS)]:
        whole, shape = name.removesuffix(BLOCKS), joined.pop(name)
        scales = joined.pop(whole + SCALES, None)
        if shape[-1:] != (HALF,) or scales != shape[:-1]:
            found = "missing" if scales is None else list(scales)
            raise ModelError(f"{where}: tensor {name} is {list(shape)}, but its scales are {found}")
        joined[whole] = (*shape[:-2], shape[-2] * INPUTS)
    return joined


class Mxfp4Checkpoint:
    """A checkpoint whose `stream` yields joined weights as rows of ggml blocks, uint8 [..., rows, bytes of a row]."""

    def __init__(self, inner: FileTensors, where: str) -> None:
        self._inner = inner
        self._where = where
        self.shapes = joined_blocks(inner.shapes, where)
        self.in_blocks = dict.fromkeys(self.shapes.keys() - inner.shapes.keys(), GGMLQuantizationType.MXFP4)
        self.quantised: Set[str] = self.in_blocks.keys()
        self.sizes = {name: self._size(name) for name in self.shapes}
        for name in [whole + part for whole in self.in_blocks for part in (BLOCKS, SCALES)]:
            if (found := inner.coded.get(name, "floating point numbers")) != "U8":
                raise ModelError(f"{where}: tensor {name} is stored as {found}, expected is U8")

    def _size(self, name: str) -> int:
        parts = (name + BLOCKS, name + SCALES) if name in self.in_blocks else (name,)
        return sum(self._inner.sizes[part] for part in parts)

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Iterator[tuple[str, Any]]:
        """Yields plain tensors as they are read and joined ones when both parts are read."""
        from lightllm_mp.kernels.quantised import BlockRows  # loads torch, which a check before start does without
        from lightllm_mp.models.checkpoint.files import check_plain

        joined = wanted & self.in_blocks.keys()
        check_plain(self._inner, wanted - joined, self._where)
        names = wanted - joined | {name + part for name in joined for part in (BLOCKS, SCALES)}
        waiting: dict[str, Tensor] = {}
        for name, tensor in self._inner.stream(names, partly - joined):
            whole = name.removesuffix(BLOCKS).removesuffix(SCALES)
            if whole not in joined:
                yield name, tensor
            elif whole not in waiting:
                waiting[whole] = tensor
            else:
                pair = (waiting.pop(whole), tensor)
                blocks, scales = pair if name.endswith(SCALES) else pair[::-1]
                yield whole, BlockRows(_ggml_rows(blocks, scales), self.in_blocks[whole])


def _ggml_rows(blocks: Tensor, scales: Tensor) -> Tensor:
    """uint8 [..., rows, blocks, 16] and [..., rows, blocks] -> [..., rows, blocks * 17]."""
    rows = blocks.new_empty((*scales.shape, 1 + HALF))
    first, second = blocks[..., : HALF // 2], blocks[..., HALF // 2 :]
    rows[..., 0] = scales
    rows[..., 1::2] = (first & 15) | (second << 4)
    rows[..., 2::2] = (first >> 4) | (second & 0xF0)
    return rows.flatten(-2)
