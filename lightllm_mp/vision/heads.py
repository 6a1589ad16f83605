"""From the patches of a tower to embeddings of the language model: projector, resampler, merger."""

from __future__ import annotations

from math import isqrt

from torch import Tensor
from torch.nn import functional as F

from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.vit import Weights, normalise, project


def projected(x: Tensor, spec: VisionSpec, weights: Weights) -> Tensor:
    """LLaVA's projector, [..., width] -> [..., out]: linear layers with exact gelu between them."""
    x = project(x, weights, "projector.0")
    for layer in range(1, spec.projector_layers):
        x = project(F.gelu(x), weights, f"projector.{layer}")
    return x


def merged(x: Tensor, spec: VisionSpec, weights: Weights) -> Tensor:
    """Qwen2.5-VL's merger, [patches, width] -> [patches / merge^2, out]."""
    x = normalise(x, weights, "merge_norm", spec.norm_eps).reshape(-1, spec.merge * spec.merge * spec.width)
    return project(F.gelu(project(x, weights, "merge_up")), weights, "merge_down")


class Resampler:
    """Qwen-VL's: learned queries look at the patches of a picture, then a norm and a projection.

    Positions are added to queries and keys, not to values; the keys' are interpolated to the grid of patches.
    """

    def __init__(self, spec: VisionSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        positions = weights["query_positions"]
        query = normalise(weights["query"], weights, "query_norm", spec.norm_eps) + positions
        self._query = F.linear(query, weights["in"][: spec.out], weights["in.bias"][: spec.out])
        self._key_positions = interpolated(positions, spec.grid)

    def __call__(self, x: Tensor) -> Tensor:
        """[pictures, patches, width] -> [pictures, queries, out]."""
        spec, weights, out = self.spec, self.weights, self.spec.out
        x = normalise(project(x, weights, "kv") if "kv" in weights else x, weights, "kv_norm", spec.norm_eps)
        keys = F.linear(x + self._key_positions, weights["in"][out : 2 * out], weights["in.bias"][out : 2 * out])
        values = F.linear(x, weights["in"][2 * out :], weights["in.bias"][2 * out :])
        q, k, v = (
            part.unflatten(-1, (spec.query_heads, -1)).transpose(1, 2)
            for part in (self._query.expand(x.shape[0], -1, -1), keys, values)
        )
        looked = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        normed = normalise(project(looked, weights, "out"), weights, "final_norm", spec.norm_eps)
        return project(normed, weights, "final")


def interpolated(table: Tensor, edge: int) -> Tensor:
    """A square table of positions, [n * n, width], brought to [edge * edge, width] bicubically, in float32."""
    side = isqrt(table.shape[0])
    if side == edge:
        return table
    square = table.float().unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0)
    wide = F.interpolate(square, size=(edge, edge), mode="bicubic", align_corners=False)
    return wide[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)
