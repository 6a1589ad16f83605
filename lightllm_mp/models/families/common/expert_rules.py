"""Weight rules of mixtures of experts, which replace the MLP of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.models.spec import ModelSpec

NAMES = ("gate_proj", "up_proj", "down_proj")
CORRECTION = "gate.e_score_correction_bias"


def with_experts(
    spec: ModelSpec,
    params: list[Param],
    *,
    block: str = "mlp",
    names: tuple[str, str, str] = NAMES,
    correction: str = CORRECTION,
) -> list[Param]:
    """`params` under Llama's names, with router and experts in place of the MLP of every layer that has them.

    `block` is the prefix of `gate`, `experts.<number>` and the correction of the router's choice; `names` are an
    expert's gate, up and down projections.
    """

    def rule(layer: int) -> list[Param]:
        assert spec.moe is not None
        at = f"model.layers.{layer}.{block}."
        experts = [tuple(f"{at}experts.{number}.{name}" for name in names) for number in range(spec.moe.experts)]
        return mixture(spec, layer, at + "gate", experts) + corrected(spec, layer, at + correction)

    return instead_of_mlps(spec, params, rule)


def with_fused_experts(
    spec: ModelSpec, params: list[Param], *, transposed: bool = False, block: str = "mlp"
) -> list[Param]:
    """As `with_experts`, for files with one tensor of all experts for each kind of projection: `experts.gate_up_proj`
    [experts, 2 * n, hidden], gate first, and `experts.down_proj` [experts, hidden, n]; `transposed`: each the other way
    around."""

    def rule(layer: int) -> list[Param]:
        moe = spec.moe
        assert moe is not None
        at, to = f"model.layers.{layer}.{block}.", f"layers.{layer}."
        router = linear(to + "router", at, (("gate", moe.experts),), spec.hidden, False)
        gate_up = fused(f"{at}experts.gate_up_proj", moe.experts, (2 * moe.intermediate, spec.hidden), transposed)
        down = fused(f"{at}experts.down_proj", moe.experts, (spec.hidden, moe.intermediate), transposed)
        return [*router, Param(to + "experts.gate_up", gate_up), Param(to + "experts.down", down)]

    return instead_of_mlps(spec, params, rule)


def fused(name: str, count: int, shape: tuple[int, int], transposed: bool) -> tuple[Piece, ...]:
    """A piece for each expert, of `shape` in the decoder."""

    def one(number: int) -> Piece:
        stored = (count, *(shape[::-1] if transposed else shape))
        return Piece(name, shape, lambda tensor: tensor[number].T if transposed else tensor[number], stored=stored)

    return tuple(one(number) for number in range(count))


def instead_of_mlps(spec: ModelSpec, params: list[Param], rule: Callable[[int], list[Param]]) -> list[Param]:
    """`params` with the MLP of every layer that has experts replaced by `rule(layer)`."""
    assert spec.moe is not None
    sparse = [i for i in range(spec.layers) if i not in spec.moe.dense_layers]
    replaced = {f"layers.{i}.{name}" for i in sparse for name in ("gate_up", "down")}
    kept = [param for param in params if param.target not in replaced]
    return kept + [param for i in sparse for param in rule(i)]


def mixture(spec: ModelSpec, layer: int, router: str, experts: Sequence[Sequence[str]]) -> list[Param]:
    """Router and experts of a layer; `experts` has the names of gate, up and down projection of each expert."""
    moe, to = spec.moe, f"layers.{layer}."
    assert moe is not None
    first, last = (moe.intermediate, spec.hidden), (spec.hidden, moe.intermediate)
    gate_up = tuple(Piece(name + ".weight", first) for gate, up, _ in experts for name in (gate, up))
    return [
        *linear(to + "router", "", ((router, moe.experts),), spec.hidden, False),
        Param(to + "experts.gate_up", gate_up),
        Param(to + "experts.down", tuple(Piece(down + ".weight", last) for _, _, down in experts)),
    ]


def corrected(spec: ModelSpec, layer: int, name: str) -> list[Param]:
    """The correction of a layer's choice of experts, where the model has one."""
    moe = spec.moe
    assert moe is not None
    return [Param(f"layers.{layer}.router.correction", (Piece(name, (moe.experts,)),))] if moe.correction else []


def shared_experts(spec: ModelSpec, *, block: str = "mlp.shared_experts") -> list[Param]:
    """The MLP beside the experts under Llama's names; `block` is the prefix of its projections."""
    moe = spec.moe
    assert moe is not None
    params: list[Param] = []
    for i in range(spec.layers if moe.shared_intermediate else 0):
        if i in moe.dense_layers:
            continue
        at, to, width = f"model.layers.{i}.{block}.", f"layers.{i}.shared.", moe.shared_intermediate
        params += linear(to + "gate_up", at, (("gate_proj", width), ("up_proj", width)), spec.hidden, False)
        params += linear(to + "down", at, (("down_proj", spec.hidden),), width, False)
    return params
