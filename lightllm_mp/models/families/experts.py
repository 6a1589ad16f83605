"""Weight rules of mixtures of experts: what stands in place of a layer's MLP."""

from __future__ import annotations

from lightllm_mp.models.families.rules import linear
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.models.weights import Param, Piece

NAMES = ("gate_proj", "up_proj", "down_proj")


def with_experts(
    spec: ModelSpec, params: list[Param], *, block: str = "mlp", names: tuple[str, str, str] = NAMES
) -> list[Param]:
    """`params` of a model under Llama's names, with router and experts for the MLP of every layer that has them.

    `block` holds `gate` and `experts.<number>`, whose gate, up and down projections are called `names`.
    """
    assert spec.moe is not None
    sparse = [i for i in range(spec.layers) if i not in spec.moe.dense_layers]
    replaced = {f"layers.{i}.{name}" for i in sparse for name in ("gate_up", "down")}
    kept = [param for param in params if param.target not in replaced]
    return kept + [param for i in sparse for param in _layer(spec, i, block, names)]


def _layer(spec: ModelSpec, layer: int, block: str, names: tuple[str, str, str]) -> list[Param]:
    moe, to = spec.moe, f"layers.{layer}."
    assert moe is not None
    at = f"model.layers.{layer}.{block}."
    gate, up, down = names
    first, last = (moe.intermediate, spec.hidden), (spec.hidden, moe.intermediate)
    experts = [f"{at}experts.{number}." for number in range(moe.experts)]
    return [
        *linear(to + "router", at, (("gate", moe.experts),), spec.hidden, False),
        Param(to + "experts.gate_up", tuple(Piece(f"{e}{name}.weight", first) for e in experts for name in (gate, up))),
        Param(to + "experts.down", tuple(Piece(f"{e}{down}.weight", last) for e in experts)),
    ]
