"""Readers of GGUF keys and tensor names that families share.

The keys are those of ggml's docs/gguf.md and of the `gguf` library. Facts without a key (biases, a tied head, layers
without experts) follow from the tensors of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import TensorNames, Transform, decoder, linear
from lightllm_mp.models.families.common.expert_rules import corrected, instead_of_mlps, mixture
from lightllm_mp.models.families.common.family import rope_spec, stretched_context
from lightllm_mp.models.spec import ModelSpec, MoeSpec, RopeSpec

if TYPE_CHECKING:
    from lightllm_mp.models.checkpoint.gguf import GGUFFile

NAMES = TensorNames(
    embed="token_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    input_norm="attn_norm",
    post_norm="ffn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    o="attn_output",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
)
ONE_UP = replace(NAMES, up=("ffn_up",))
"""Names for an MLP without gate, or with gate and up in one tensor."""

SOFTMAX, SIGMOID = 1, 2
"""Values of `expert_gating_func`."""
CORRECTION = "exp_probs_b.bias"

MAX_PARTS = 4096
"""Most layers, heads or experts: files are not trusted, and these counts size loops before any tensor is found."""


@dataclass(frozen=True, slots=True)
class GGUFKeys:
    """The keys `<architecture>.<name>` of a file, and the names of its tensors."""

    file: GGUFFile

    def get(self, name: str) -> Any:
        """A value, None where it is absent."""
        return self.file.metadata.get(self._whole(name))

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer. Raises KeyError where it is absent and there is no `default`."""
        return int(self._value(name, default))

    def count(self, name: str, default: int | None = None) -> int:
        """As `integer`, for a number of parts. Raises ModelError above MAX_PARTS."""
        if (found := self.integer(name, default)) > MAX_PARTS:
            raise ModelError(f"{self._whole(name)} {found} is not supported")
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """As `integer`, for a float."""
        return float(self._value(name, default))

    @property
    def head_dim(self) -> int:
        return self.integer(
            "attention.key_length", self.integer("embedding_length") // self.count("attention.head_count")
        )

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def refuse_unless(self, name: str, served: Any) -> None:
        """Raises ModelError where a key is present with another value than the served one."""
        if self.get(name) not in (served, None):
            raise ModelError(f"{self._whole(name)} {self.get(name)!r} is not supported")

    def _value(self, name: str, default: float | None) -> Any:
        value = self.get(name)
        if value is None and default is None:
            raise KeyError(self._whole(name))
        return default if value is None else value

    def _whole(self, name: str) -> str:
        return f"{self.file.metadata['general.architecture']}.{name}"


def gguf_spec(keys: GGUFKeys, *, family: str, **fields: Any) -> ModelSpec:
    """A spec from the keys and tensors that most files have; `fields` override them."""
    keys.refuse_unless("attention.causal", True)
    if (layers := keys.count("block_count") - keys.count("nextn_predict_layers", 0)) > len(keys.file.tensors):
        raise ModelError(f"{layers} layers cannot consist of {len(keys.file.tensors)} tensors")
    heads, head_dim = keys.count("attention.head_count"), int(fields.get("head_dim") or keys.head_dim)
    rope = fields["rope"] if "rope" in fields else gguf_rope(keys, dim=head_dim)
    if "mla" not in fields:
        keys.refuse_unless("attention.value_length", head_dim)
    context, bos = keys.integer("context_length"), keys.file.metadata.get("tokenizer.ggml.bos_token_id")
    read: dict[str, Any] = {
        "vocab": keys.file.tensors["token_embd.weight"].shape[0] if keys.has("token_embd.weight") else 0,
        "hidden": keys.integer("embedding_length"),
        "layers": layers,
        "heads": heads,
        "kv_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate": keys.integer("feed_forward_length"),
        "norm_eps": _norm_eps(keys),
        "rope": rope,
        "max_context": context if rope is None else stretched_context({"max_position_embeddings": context}, rope),
        "eos_ids": _eos_ids(keys),
        "bos_id": None if bos is None else int(bos),
        "file_dtype": keys.file.most_common_type(),
        "tied": not keys.has("output.weight"),
        "head_bias": keys.has("output.bias"),
        "norm_bias": keys.has("output_norm.bias"),
        "window": keys.integer("attention.sliding_window", 0) or None,
        "qkv_bias": keys.has("blk.0.attn_q.bias") or keys.has("blk.0.attn_qkv.bias"),
        "o_bias": keys.has("blk.0.attn_output.bias"),
        "mlp_bias": keys.has("blk.0.ffn_down.bias"),
    }
    return ModelSpec(family=family, **(read | fields))


def _norm_eps(keys: GGUFKeys) -> float:
    rms = "attention.layer_norm_rms_epsilon"
    return keys.number("attention.layer_norm_epsilon" if keys.get(rms) is None else rms)


def _eos_ids(keys: GGUFKeys) -> tuple[int, ...]:
    ids = (keys.file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def gguf_rope(keys: GGUFKeys, *, dim: int) -> RopeSpec:
    """Rotary options; `dim` rotated components of a head unless the file says otherwise."""
    dim, theta = keys.integer("rope.dimension_count", dim), keys.number("rope.freq_base", 10000.0)
    if keys.has("rope_freqs.weight"):
        return RopeSpec(theta=theta, dim=dim, divisors=rope_divisors(keys, "rope_freqs.weight", dim))
    keys.refuse_unless("rope.scaling.yarn_ext_factor", 1.0)
    kind, sections = keys.get("rope.scaling.type"), keys.get("rope.dimension_sections")
    scaling = {
        "type": "default" if kind in (None, "none") else kind,
        "factor": keys.get("rope.scaling.factor"),
        "original_max_position_embeddings": keys.get("rope.scaling.original_context_length"),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow"),
        "attention_factor": keys.get("rope.scaling.yarn_attn_factor"),
        "mrope_section": [n for i, n in enumerate(() if sections is None else sections) if i < 3 or n],
    }
    context = keys.integer("context_length")
    return rope_spec({"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": context}, dim=dim)


def rope_divisors(keys: GGUFKeys, name: str, dim: int) -> tuple[float, ...]:
    """Divisors of the dim / 2 inverse frequencies, from the tensor `name`."""
    if name not in keys.file.tensors:
        raise ModelError(f"missing tensor {name}")
    divisors = tuple(float(x) for x in keys.file.read(name).reshape(-1))
    if len(divisors) != dim // 2:
        raise ModelError(f"tensor {name} has {len(divisors)} values, expected are {dim // 2}")
    return divisors


def names_in(keys: GGUFKeys, names: TensorNames = NAMES) -> TensorNames:
    """`names`, with one name for queries, keys and values where the file joins them."""
    return replace(names, qkv=("attn_qkv",)) if "blk.0.attn_qkv.weight" in keys.file.tensors else names


def pairs_apart(heads: int) -> Transform:
    """Undoes the row order of llama.cpp's converter for queries and keys of some architectures: there the two members
    of a rotary pair are adjacent, in the decoder half a head apart."""

    def reorder(tensor: Any) -> Any:
        pairs = tensor.shape[0] // heads // 2
        return tensor.reshape(heads, pairs, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)

    return reorder


def rotary_order(spec: ModelSpec) -> dict[str, Transform]:
    """`pairs_apart` for the queries and keys of `NAMES`."""
    return {"attn_q": pairs_apart(spec.heads), "attn_k": pairs_apart(spec.kv_heads)}


def plain_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    """`gguf_weights` of most families: no experts, rows in the decoder's order, projections joined as in the file."""
    names = NAMES if keys.has("blk.0.ffn_gate.weight") else ONE_UP
    return decoder(spec, names_in(keys, names)) + head_norms(spec)


def head_norms(spec: ModelSpec) -> list[Param]:
    """Norms of the query and key heads, where the model has them."""
    shapes = {"q": (spec.heads, spec.head_dim), "k": (spec.kv_heads, spec.head_dim)}
    return [
        Param(f"layers.{i}.{kind}_norm", (_head_norm(f"blk.{i}.attn_{kind}_norm.weight", shape, spec),))
        for i in range(spec.layers if spec.head_norm else 0)
        for kind, shape in shapes.items()
    ]


def _head_norm(name: str, shape: tuple[int, int], spec: ModelSpec) -> Piece:
    """One for all heads [head_dim], one row per head [heads, head_dim], or one norm over them [heads * head_dim]."""
    if spec.joint_head_norm:
        return Piece(name, (shape[0] * shape[1],))
    if not spec.each_head_norm:
        return Piece(name, shape[1:])
    return Piece(name, (shape[0] * shape[1],), lambda tensor: tensor.reshape(-1), stored=shape)


def gguf_moe(keys: GGUFKeys, *, renormalise: bool, **fields: Any) -> MoeSpec:
    """Experts; `renormalise` is the architecture's rule where the file does not give one."""
    layers, scale = range(keys.count("block_count")), keys.number("expert_weights_scale", 1.0)
    correction = any(keys.has(f"blk.{i}.{CORRECTION}") for i in layers)
    if not (sigmoid := keys.integer("expert_gating_func", SIGMOID if correction else SOFTMAX) == SIGMOID):
        keys.refuse_unless("expert_gating_func", SOFTMAX)
    read: dict[str, Any] = {
        "experts": keys.count("expert_count"),
        "top_k": keys.count("expert_used_count"),
        "intermediate": keys.integer("expert_feed_forward_length", keys.get("feed_forward_length")),
        "renormalise": bool(keys.integer("expert_weights_norm", renormalise)),
        "scale": scale or 1.0,  # 0 stands for none
        "sigmoid": sigmoid,
        "correction": correction,
        "dense_layers": tuple(i for i in layers if not keys.has(f"blk.{i}.ffn_gate_inp.weight")),
    }
    return MoeSpec(**(read | fields))


def with_stacked_experts(spec: ModelSpec, params: list[Param], keys: GGUFKeys) -> list[Param]:
    """`params` with router and experts in place of the MLP of every layer that has them: one tensor [experts, rows,
    columns] for each kind of projection, or, in files of 2023, one for each expert."""
    moe = spec.moe
    assert moe is not None
    rule = _one_by_one if any(name.endswith("ffn_gate.0.weight") for name in keys.file.tensors) else _stacked

    def with_correction(layer: int) -> list[Param]:
        return rule(spec, moe, layer) + corrected(spec, layer, f"blk.{layer}.{CORRECTION}")

    return instead_of_mlps(spec, params, with_correction)


def _stacked(spec: ModelSpec, moe: MoeSpec, layer: int) -> list[Param]:
    at, to = f"blk.{layer}.", f"layers.{layer}."
    rows, columns, count = moe.intermediate, spec.hidden, moe.experts
    gate_up = tuple(
        Piece(f"{at}{name}_exps.weight", (rows, columns), itemgetter(i), stored=(count, rows, columns))
        for i in range(count)
        for name in ("ffn_gate", "ffn_up")
    )
    down = Piece(f"{at}ffn_down_exps.weight", (count * columns, rows), _flat_rows, stored=(count, columns, rows))
    router = linear(to + "router", at, (("ffn_gate_inp", count),), columns, moe.bias)
    params = [*router, Param(to + "experts.gate_up", gate_up), Param(to + "experts.down", (down,))]
    return params + _stacked_biases(at, to, moe, columns) if moe.bias else params


def _stacked_biases(at: str, to: str, moe: MoeSpec, hidden: int) -> list[Param]:
    """Biases of stacked experts, a row for each."""
    first, last = (moe.experts, moe.intermediate), (moe.experts, hidden)
    gate_up = tuple(
        Piece(f"{at}{name}_exps.bias", first[1:], itemgetter(i), stored=first)
        for i in range(moe.experts)
        for name in ("ffn_gate", "ffn_up")
    )
    down = Piece(f"{at}ffn_down_exps.bias", (moe.experts * hidden,), lambda x: x.reshape(-1), stored=last)
    return [Param(to + "experts.gate_up.bias", gate_up), Param(to + "experts.down.bias", (down,))]


def _flat_rows(tensor: Any) -> Any:
    return tensor.reshape(-1, tensor.shape[-1])


def _one_by_one(spec: ModelSpec, moe: MoeSpec, layer: int) -> list[Param]:
    at = f"blk.{layer}."
    names = [tuple(f"{at}{kind}.{i}" for kind in ("ffn_gate", "ffn_up", "ffn_down")) for i in range(moe.experts)]
    return mixture(spec, layer, at + "ffn_gate_inp", names)


def shared_width(keys: GGUFKeys) -> int:
    """Width of the MLP beside the experts, which the file counts in experts."""
    return keys.count("expert_shared_count", 0) * keys.integer("expert_feed_forward_length")


def shared_expert(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    """The MLP beside the experts, with its gate, if any, which is stored as a vector or as a matrix of one row."""
    assert spec.moe is not None
    params: list[Param] = []
    width = spec.moe.shared_intermediate
    for i in range(spec.layers if width else 0):
        if i in spec.moe.dense_layers:
            continue
        at, to = f"blk.{i}.", f"layers.{i}."
        params += linear(
            to + "shared.gate_up", at, (("ffn_gate_shexp", width), ("ffn_up_shexp", width)), spec.hidden, False
        )
        params += linear(to + "shared.down", at, (("ffn_down_shexp", spec.hidden),), width, False)
        if spec.moe.shared_gate:
            name, shape = at + "ffn_gate_inp_shexp.weight", (1, spec.hidden)
            vector = name in keys.file.tensors and len(keys.file.tensors[name].shape) == 1
            stored = shape[1:] if vector else shape
            params.append(Param(to + "shared_gate", (Piece(name, shape, lambda x: x.reshape(1, -1), stored=stored),)))
    return params
