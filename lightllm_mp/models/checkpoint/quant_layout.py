"""The tensors that make up each quantised weight of a checkpoint, from names and shapes alone. Imports no torch.

For a module X of n outputs and k inputs the files hold, in place of X.weight:

scaled   X.weight [n, k] of 8 bits, and X.weight_scale_inv or X.weight_scale: [], [1], [n], [n, 1] or a grid of blocks
awq      X.qweight int32 [k, n / e], X.scales [groups, n], X.qzeros int32 [groups, n / e], with e = 32 / bits
gptq     X.qweight int32 [k / e, n], X.scales and X.qzeros as above, maybe X.g_idx [k]
packed   X.weight_packed int32 [n, k / e], X.weight_scale [n, groups], maybe X.weight_zero_point int32 [n / e, groups]
         and X.weight_g_idx [k]
nvfp4    X.weight_packed or X.weight uint8 [n, k / 2], X.weight_scale e4m3 [n, k / group], and one of
         X.weight_global_scale (a divisor) and X.weight_scale_2 (a factor), both of one element

Scales of activations and of the KV cache are not used: activations stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.quant_config import QuantConfig, QuantScheme

MARKS = (".qweight", ".weight_packed", ".weight_scale_inv", ".weight_scale")
"""Suffixes by which a quantised module is recognised."""

UNUSED = (
    *(".input_scale", ".input_global_scale", ".input_zero_point", ".output_scale"),
    *(".k_scale", ".v_scale", ".q_scale", ".weight_shape"),
)
"""Suffixes of tensors that are read past."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A quantised weight: the tensors of the file that it is made of."""

    stem: str
    """The module's name: the weight is called `<stem>.weight`."""
    scheme: QuantScheme
    shape: tuple[int, int]
    """[n, k]"""
    parts: tuple[str, ...]
    """Suffixes of its tensors."""

    @property
    def name(self) -> str:
        return self.stem + ".weight"


def stored_weights(config: QuantConfig, shapes: Mapping[str, Shape], where: str) -> list[StoredWeight]:
    """The quantised weights among tensors of these names and shapes. ModelError for a part that is missing or
    mis-shaped."""
    stems = {name.removesuffix(mark): None for name in shapes for mark in MARKS if name.endswith(mark)}
    return [_stored(stem, config.scheme_of(stem), shapes, where) for stem in stems]


def joined_shapes(shapes: Mapping[str, Shape], weights: list[StoredWeight]) -> dict[str, Shape]:
    """Shapes of the weights that the tensors stand for, and of those that are plain."""
    parts = {weight.stem + part for weight in weights for part in weight.parts}
    plain = {name: shape for name, shape in shapes.items() if name not in parts and not name.endswith(UNUSED)}
    return plain | {weight.name: weight.shape for weight in weights}


def surplus_biases(weights: list[StoredWeight], shapes: Mapping[str, Shape], wanted: Set[str]) -> set[str]:
    """Biases that the model does not have: old GPTQ files have one of zeros for every projection."""
    return ({weight.stem + ".bias" for weight in weights} & shapes.keys()) - wanted


def _stored(stem: str, scheme: QuantScheme, shapes: Mapping[str, Shape], where: str) -> StoredWeight:
    def shape(suffix: str, dimensions: int = 2) -> Shape:
        found = shapes.get(stem + suffix)
        if found is None or len(found) != dimensions:
            raise ModelError(f"{where}: tensor {stem}{suffix} is {_shown(found)}, expected is a matrix")
        return found

    each = 32 // scheme.bits
    expected: dict[str, Shape]
    optional: dict[str, Shape] = {}
    whole = stem + ".weight"
    if scheme.form in ("awq", "gptq", "packed") and whole in shapes:
        raise ModelError(f"{where}: tensor {whole} is both packed and plain")
    if scheme.form == "scaled":
        n, k = shape(".weight")
        suffix = ".weight_scale_inv" if stem + ".weight_scale_inv" in shapes else ".weight_scale"
        _check_scale(stem + suffix, shapes.get(stem + suffix), (n, k), scheme.block, where)
        return StoredWeight(stem, scheme, (n, k), (".weight", suffix))
    if scheme.form == "nvfp4":
        packed = ".weight_packed" if stem + ".weight_packed" in shapes else ".weight"
        n, k = shape(packed)[0], shape(packed)[1] * 2
        factor = ".weight_global_scale" if stem + ".weight_global_scale" in shapes else ".weight_scale_2"
        single = shapes.get(stem + factor)
        expected = {packed: (n, k // 2), ".weight_scale": (n, scheme.groups(k)), factor: () if single == () else (1,)}
    elif scheme.form == "packed":
        n, k = shape(".weight_packed")[0], shape(".weight_packed")[1] * each
        expected = {".weight_packed": (n, k // each), ".weight_scale": (n, scheme.groups(k))}
        optional = {".weight_zero_point": (-(-n // each), scheme.groups(k)), ".weight_g_idx": (k,)}
    else:
        rows, columns = shape(".qweight")
        n, k = (columns, rows * each) if scheme.form == "gptq" else (columns * each, rows)
        expected = {".qweight": (rows, columns), ".scales": (scheme.groups(k), n)}
        optional = {".qzeros": (scheme.groups(k), n // each), ".g_idx": (k,)}
    expected |= {suffix: wanted for suffix, wanted in optional.items() if stem + suffix in shapes}
    for suffix, wanted in expected.items():
        if shapes.get(stem + suffix) != wanted:
            found = _shown(shapes.get(stem + suffix))
            raise ModelError(f"{where}: tensor {stem}{suffix} is {found}, expected is {list(wanted)}")
    return StoredWeight(stem, scheme, (n, k), tuple(expected))


def _check_scale(
    name: str, found: Shape | None, weight: tuple[int, int], block: tuple[int, int] | None, where: str
) -> None:
    n, k = weight
    served: tuple[Shape, ...] = ((), (1,), (1, 1), (n,), (n, 1))
    if block is not None:
        served = ((-(-n // block[0]), -(-k // block[1])),)
    if found not in served:
        expected = f"one scale or {[n, 1]}" if block is None else str(list(served[0]))
        raise ModelError(f"{where}: tensor {name} is {_shown(found)}, expected for a weight {[n, k]} is {expected}")


def _shown(shape: Shape | None) -> str:
    return "missing" if shape is None else str(list(shape))
