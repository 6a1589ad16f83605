"""Assembles the tensors of a checkpoint, as they are read, into the parameters of a decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from gguf import GGMLQuantizationType

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.quantised import (
    BlockRows,
    BlockWeight,
    GroupedWeight,
    QuantisedWeight,
    ScaledWeight,
    stacked,
)
from lightllm_mp.kernels.reference.quantised import expanded, quantise
from lightllm_mp.kernels.table import OpTable, Prepared
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.parallel.shard_copy import (
    Sliceable,
    in_equal_parts,
    in_experts,
    part_of_packed,
    parts_of_blocks,
    place,
    place_scaled,
    without_gaps,
)
from lightllm_mp.models.parallel.sharding import WHOLE, ShardCut

EXPERTS = ("experts.gate_up", "experts.down")
"""Suffixes of the weights of all experts of a layer."""

NO_PROJECTIONS = ("embed", "types", "positions", "q_norm", "k_norm", "kv_b", "delta.conv", *EXPERTS)
"""Suffixes of matrices that are not plain projections: they are stored as they are, for `tensor`."""

NOT_QUANTISED = ("router", "shared_gate", "delta.ba")
"""Suffixes of projections that are too small and too delicate to gain from quantisation."""

KEPT_FLOAT32 = ("delta.a_log", "delta.dt_bias", "delta.norm", "router.correction")
"""Suffixes of small parameters that are float32 with every dtype of the model."""


def types_in_blocks(ops: OpTable, dtype: torch.dtype) -> frozenset[int]:
    """ggml's numbers of the types in which projections and the embedding stay, for activations of `dtype`."""
    return ops.block_types if dtype == torch.bfloat16 else frozenset()


class ModelWeights:
    """Parameters by target name. A projection is prepared for the op table as soon as it is complete, and its plain
    form is dropped, so loading needs little more memory than the loaded model. `cuts` has this rank's part by target;
    the others are kept whole."""

    def __init__(
        self,
        params: list[Param],
        ops: OpTable,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        quantization: Literal["none", "int8", "fp8"] = "none",
        cuts: Mapping[str, ShardCut] | None = None,
    ) -> None:
        self._ops = ops
        self._quantization = quantization
        self._device = device
        self._dtype = dtype
        self._block_types = types_in_blocks(ops, dtype)
        self._cuts = {param.target: (cuts or {}).get(param.target, WHOLE) for param in params}
        self._shapes = {param.target: self._cuts[param.target].shape(param.shape) for param in params}
        self._place: dict[str, list[tuple[Param, Piece, int]]] = {}
        self._missing: dict[str, int] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._saved = 0
        self._packed: dict[str, dict[int, GroupedWeight]] = {}
        self._scaled: dict[str, ScaledWeight] = {}
        self._blocks: dict[str, list[tuple[int, BlockRows]]] = {}
        self._linears: dict[str, Prepared] = {}
        for param in params:
            own = _own_pieces(param, self._cuts[param.target])
            for piece, row in own:
                self._place.setdefault(piece.name, []).append((param, piece, row))
            self._missing[param.target] = len(own)

    @property
    def names(self) -> set[str]:
        """The tensors of the file of which this rank keeps something."""
        return set(self._place)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations and of everything that is not quantised."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters, in the dtype or quantised form in which they are held."""
        return sum(map(math.prod, self._shapes.values())) * self._dtype.itemsize - self._saved

    def partly(self, name: str) -> bool:
        """Whether this rank needs only a part of a tensor of the file, and that part untransformed."""
        places = self._place[name]
        return all(piece.transform is None and self._cuts[param.target] != WHOLE for param, piece, _ in places)

    def keeps_blocks(self, name: str, kind: GGMLQuantizationType) -> bool:
        """Whether a tensor of the file may stay in ggml blocks of this type, in all its uses."""
        return name in self._place and all(self._may_be_blocks(param.target, kind) for param, _, _ in self._place[name])

    def _may_be_blocks(self, target: str, kind: GGMLQuantizationType) -> bool:
        if target.endswith(EXPERTS) and kind in self._ops.expert_block_types:
            return True
        return kind in self._block_types and _may_be_blocks(target)

    def keeps_quantised(self, name: str) -> bool:
        """Whether a quantised weight of the file stays quantised: all its uses are projections inside a layer."""
        return name in self._place and all(may_be_scaled(param.target) for param, _, _ in self._place[name])

    def add(self, name: str, tensor: Sliceable | ScaledWeight | GroupedWeight | BlockRows) -> None:
        """Copies one tensor of the file into its parameters. 8-bit weights stay as they are in the projections of
        layers, 4-bit ones in experts only where the op table takes them; elsewhere both are expanded. ggml blocks
        stay in the embedding and the head too."""
        for param, piece, row in self._place[name]:
            if isinstance(tensor, BlockRows):
                self._add_blocks(param, piece, row, tensor)
            elif isinstance(tensor, ScaledWeight):
                self._add_scaled(param, piece, row, tensor)
            elif not isinstance(tensor, GroupedWeight):
                self._copy(param, piece, row, tensor)
            elif self._keeps_groups(param.target):
                part = tensor.reordered(piece.transform) if piece.transform else tensor
                if (own := part_of_packed(part, self._cuts[param.target], row)) is not None:
                    self._packed.setdefault(param.target, {})[own[0]] = own[1].to(self._device)
            else:
                self._copy(param, piece, row, expanded(tensor, self._dtype))
            self._missing[param.target] -= 1
            self._prepare_if_whole(param.target.removesuffix(".bias"))

    def _keeps_groups(self, target: str) -> bool:
        """Whether 4-bit weights stay packed. An op table that takes blocks takes them as experts, too."""
        of_experts = target.endswith(EXPERTS) and bool(self._ops.block_types) and self._dtype == torch.bfloat16
        return (of_experts or _may_be_quantised(target)) and not self._cuts[target].padded

    def _add_scaled(self, param: Param, piece: Piece, row: int, weight: ScaledWeight) -> None:
        target, cut, shape = param.target, self._cuts[param.target], self._shapes[param.target]
        whole = self._scaled.get(target)
        other = whole is not None and whole.values.dtype != weight.values[0:1].dtype
        if target in self._tensors or other or not may_be_scaled(target):
            self._copy(param, piece, row, expanded(replace(weight, values=weight.values[:]), self._dtype))
            return
        own = weight.reordered(piece.transform) if piece.transform else weight
        self._scaled[target] = place_scaled(own, whole, shape, cut, row, self._device)

    def _add_blocks(self, param: Param, piece: Piece, row: int, blocks: BlockRows) -> None:
        if self._may_be_blocks(
            param.target, blocks.type
        ):  # transforms reorder rows of blocks as they reorder plain rows
            own = BlockRows(piece.transform(blocks.rows), blocks.type) if piece.transform else blocks
            if (parts := parts_of_blocks(own, self._cuts[param.target], row)) is not None:
                there = [(to, BlockRows(part.rows.to(self._device), part.type)) for to, part in parts]
                self._blocks.setdefault(param.target, []).extend(there)
                return
        self._copy(param, piece, row, expanded(BlockWeight((blocks,)), self._dtype))

    def _copy(self, param: Param, piece: Piece, row: int, tensor: Sliceable) -> None:
        cut, whole = self._cuts[param.target], self._tensors.get(param.target)
        if whole is None:
            make = torch.zeros if cut.padded else torch.empty
            dtype = torch.float32 if param.target.endswith(KEPT_FLOAT32) else self._dtype
            whole = make(self._shapes[param.target], dtype=dtype, device=self._device)
            self._tensors[param.target] = whole
            if scaled := self._scaled.pop(param.target, None):  # some pieces are scaled, others are not
                whole.copy_(expanded(scaled, self._dtype))
        place(piece.transform(tensor) if piece.transform else tensor, whole, cut, row, piece.shape[0])

    def _prepare_if_whole(self, target: str) -> None:
        bias = target + ".bias"
        if len(self._shapes[target]) != 2 or target.endswith(EXPERTS):
            return
        if target.endswith(NO_PROJECTIONS) and target not in self._blocks:
            return
        if self._missing[target] or self._missing.get(bias, 0):
            return
        self._linears[target] = self._prepared(target, self._tensors.pop(bias, None))

    def _prepared(self, target: str, bias: torch.Tensor | None) -> Prepared:
        blocks = self._blocks.pop(target, [])
        parts = self._packed.pop(target, {})
        whole = self._tensors.pop(target, None)
        if (scaled := self._scaled.pop(target, None)) is not None:
            return self._quantised(target, scaled, bias)
        if blocks and whole is None:
            return self._quantised(target, BlockWeight(without_gaps(blocks, self._shapes[target][0])), bias)
        for row, some in blocks:  # some pieces are blocks, others are not
            assert whole is not None
            whole[row : row + some.rows.shape[0]].copy_(expanded(BlockWeight((some,)), self._dtype))
        if parts and whole is None and (joined := stacked([parts[row] for row in sorted(parts)])) is not None:
            return self._quantised(target, joined, bias)
        if parts:
            whole = self._expanded(target, parts, whole)
        assert whole is not None
        if self._quantization != "none" and _may_be_quantised(target):
            return self._quantised(target, quantise(whole, self._quantization), bias)
        return self._ops.prepare_linear(whole, bias)

    def _expanded(self, target: str, parts: dict[int, GroupedWeight], whole: torch.Tensor | None) -> torch.Tensor:
        """A parameter of which some pieces are plain, those in `whole`, or whose pieces differ in their groups."""
        if whole is None:
            whole = torch.empty(self._shapes[target], dtype=self._dtype, device=self._device)
        for row, part in parts.items():
            whole[row : row + part.codes.shape[0]].copy_(expanded(part, self._dtype))
        return whole

    def _quantised(self, target: str, weight: QuantisedWeight, bias: torch.Tensor | None) -> Prepared:
        prepared = self._ops.prepare_quantised(weight, bias, self._dtype)
        held = _bytes_of(prepared)
        plain = sum(math.prod(self._shapes[name]) for name in (target, target + ".bias") if name in self._shapes)
        self._saved += max(0, plain * self._dtype.itemsize - held)
        return prepared

    def shape(self, target: str) -> tuple[int, ...]:
        """Shape of this rank's part."""
        return self._shapes[target]

    def tensor(self, target: str) -> torch.Tensor:
        """A parameter that is used as it is: a norm weight, a bias of one, or one of `NO_PROJECTIONS`."""
        if self._missing.get(target, 1):
            raise ModelError(f"parameter {target} is incomplete")
        return self._tensors[target]

    def take(self, target: str) -> torch.Tensor:
        """As `tensor`, but the parameter is not kept: the caller converts it."""
        self.tensor(target)
        return self._tensors.pop(target)

    def experts(self, target: str, count: int) -> torch.Tensor | ScaledWeight | tuple[QuantisedWeight, ...]:
        """Weights of `count` experts, which are not kept: [count, n, k], or the blocks or 4-bit groups of each.

        8-bit weights are expanded for a model in float32, which users choose for exactness.
        """
        if (scaled := self._scaled.pop(target, None)) is not None:
            scaled = in_experts(scaled, count)
            if self._dtype == torch.float32:
                return torch.stack([expanded(scaled.expert(i), self._dtype) for i in range(count)])
            self._saved += scaled.values.numel() * self._dtype.itemsize - scaled.nbytes
            return scaled
        if parts := self._packed.pop(target, {}):
            whole = self._tensors.pop(target, None)
            if whole is None and (grouped := _of_experts(parts, self._shapes[target][0] // count)) is not None:
                held = sum(weight.nbytes for weight in grouped)
                self._saved += math.prod(self._shapes[target]) * self._dtype.itemsize - held
                return grouped
            self._tensors[target] = self._expanded(target, parts, whole)
        if target not in self._blocks or target in self._tensors:
            whole = self.take(target)
            for row, part in self._blocks.pop(target, []):  # some pieces are blocks, others are not
                whole[row : row + part.rows.shape[0]].copy_(expanded(BlockWeight((part,)), self._dtype))
            return whole.view(count, -1, whole.shape[1])
        whole_blocks = without_gaps(self._blocks.pop(target), self._shapes[target][0])
        held = BlockWeight(whole_blocks).nbytes
        self._saved += max(0, math.prod(self._shapes[target]) * self._dtype.itemsize - held)
        return in_equal_parts(whole_blocks, count)

    def expert_bias(self, target: str, count: int) -> torch.Tensor | None:
        """Biases [count, n] of the experts with the weights `target`, which are not kept; None where this rank adds
        none."""
        bias = target + ".bias"
        return self.take(bias).view(count, -1) if bias in self._shapes else None

    def table(self, target: str) -> torch.Tensor | Prepared:
        """The table for the op `embedding`."""
        return self._linears[target] if target in self._linears else self.tensor(target)

    def linear(self, target: str) -> Prepared:
        """A projection in the op table's form."""
        if target not in self._linears:
            self._linears[target] = self._ops.prepare_linear(self.tensor(target), None)
        return self._linears[target]


def _own_pieces(param: Param, cut: ShardCut) -> list[tuple[Piece, int]]:
    """The pieces of which a rank keeps something, each with its first row in the parameter; all if it keeps none."""
    begins = itertools.accumulate((piece.shape[0] for piece in param.pieces), initial=0)
    pieces = list(zip(param.pieces, begins, strict=False))
    if cut.rows is None:
        return pieces
    return [(piece, row) for piece, row in pieces if cut.rows.within(row, row + piece.shape[0])] or pieces


def _may_be_quantised(target: str) -> bool:
    """True for a projection inside a layer, not for the head, which decides between near scores."""
    return target.startswith("layers.") and not target.endswith((*NO_PROJECTIONS, *NOT_QUANTISED, ".bias"))


def _of_experts(parts: dict[int, GroupedWeight], each: int) -> tuple[GroupedWeight, ...] | None:
    """Parts by their first row as weights of `each` rows; None where the groups of some differ."""
    by_expert: dict[int, list[GroupedWeight]] = {}
    for row in sorted(parts):
        by_expert.setdefault(row // each, []).append(parts[row])
    joined = [stacked(some) for some in by_expert.values()]
    whole = [weight for weight in joined if weight is not None]
    return tuple(whole) if len(whole) == len(joined) else None


def may_be_scaled(target: str) -> bool:
    """True for a projection inside a layer, also for those of experts."""
    return _may_be_quantised(target) or target.endswith(EXPERTS)


def _may_be_blocks(target: str) -> bool:
    """True for a projection (also the head and those of experts) and the embedding."""
    return target.endswith(("embed", *EXPERTS)) or not target.endswith((*NO_PROJECTIONS, ".bias"))


def _bytes_of(prepared: Prepared) -> int:
    if isinstance(prepared, torch.Tensor):
        return prepared.nbytes
    return sum(map(_bytes_of, prepared)) if isinstance(prepared, tuple) else 0
