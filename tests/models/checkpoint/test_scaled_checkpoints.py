"""Checkpoints of 8-bit values with scales (fp8, modelopt, compressed-tensors) equal the weights that they encode."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels import reference
from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.preflight import check_weights
from tests.models.checkpoint.quantised_folders import Packed, compressed, logits, make
from tests.models.golden import GOLDENS

BLOCK = (24, 40)
"""A multiple of no size in the tiny models: blocks end in the middle of heads, experts and ranks."""


def packed(stem: str, weight: torch.Tensor, scales: torch.Tensor) -> Packed:
    """FP8 values of a weight with a scale for each element, without the scales, and the weight that they encode."""
    values = (weight.float() / scales).to(torch.float8_e4m3fn)
    return {stem + ".weight": values}, values.float() * scales


def in_blocks(stem: str, weight: torch.Tensor, suffix: str = ".weight_scale_inv") -> Packed:
    n, k = weight.shape
    random = torch.Generator().manual_seed(len(stem))
    grid = torch.rand(-(-n // BLOCK[0]), -(-k // BLOCK[1]), generator=random) * 1e-3 + 1e-3
    whole = grid.repeat_interleave(BLOCK[0], 0)[:n].repeat_interleave(BLOCK[1], 1)[:, :k]
    tensors, stands_for = packed(stem, weight, whole)
    return tensors | {stem + suffix: grid}, stands_for


def by(shape: Callable[[torch.Tensor], torch.Tensor], kind: torch.dtype = torch.float32, **others: torch.Tensor):
    """Scales of one kind: `shape` makes the stored tensor of the scale of each output."""

    def pack(stem: str, weight: torch.Tensor) -> Packed:
        scales = shape(weight.float().abs().amax(1) / 400).to(kind)
        values, stands_for = packed(stem, weight, scales.float().reshape(-1, 1))
        return values | {stem + ".weight_scale": scales} | {
            f"{stem}.{k}": v.clone() for k, v in others.items()
        }, stands_for

    return pack


def integers(stem: str, weight: torch.Tensor) -> Packed:
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    values = (weight.float() / scales.float()).round().clamp(-127, 127)
    return {stem + ".weight": values.to(torch.int8), stem + ".weight_scale": scales}, values * scales.float()


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
CASES = {
    "blocks": (in_blocks, {**FP8, "weight_block_size": list(BLOCK)}),
    "blocks of compressed-tensors": (
        lambda stem, w: in_blocks(stem, w, ".weight_scale"),
        compressed("float-quantized", type="float", strategy="block", block_structure=list(BLOCK)),
    ),
    "tensor": (by(lambda s: s.amax().reshape(1)), {"quant_method": "fp8", "activation_scheme": "static"}),
    "tensor, modelopt": (
        by(lambda s: s.amax(), input_scale=torch.tensor(0.3), k_scale=torch.tensor(0.5)),
        {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head", "model.embed*"]},
    ),
    "channel": (
        by(lambda s: s[:, None], torch.bfloat16),
        compressed("float-quantized", type="float", strategy="channel"),
    ),
    "channel, fbgemm": (by(lambda s: s[:, None]), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "int8": (integers, compressed("int-quantized", type="int", strategy="channel")),
}


@pytest.mark.parametrize("case", CASES)
def test_same_as_expanded(tmp_path, case):
    make(tmp_path, *CASES[case])
    check_weights(tmp_path / "packed")
    expected = logits(tmp_path / "plain", most=2)
    assert (logits(tmp_path / "packed", most=2) - expected).abs().max().item() < 1e-4


def test_settings_in_a_file_of_their_own(tmp_path):
    """As older exports of modelopt have them."""
    make(tmp_path, *CASES["tensor, modelopt"])
    folder = tmp_path / "packed"
    config = json.loads((folder / "config.json").read_text())
    settings = {**config.pop("quantization_config"), "kv_cache_quant_algo": "FP8"}
    del settings["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": settings}))
    assert (logits(folder, most=2) - logits(tmp_path / "plain", most=2)).abs().max().item() < 1e-4


@pytest.mark.parametrize(("dtype", "ops"), [(torch.float32, reference.TABLE), (torch.bfloat16, None)])
def test_experts(tmp_path, dtype, ops):
    """They come as near to the exact values as expanded ones do. Without bfloat16 instructions they come nearer: both
    are rounded elsewhere then."""
    make(tmp_path, *CASES["blocks"], golden="qwen3_moe", stems=lambda stem: not stem.endswith("3.up_proj"))
    exact = logits(tmp_path / "plain", golden="qwen3_moe", dtype=torch.float32, ops=reference.TABLE, most=2)
    packed, plain = (
        (logits(tmp_path / kind, golden="qwen3_moe", dtype=dtype, ops=ops, most=2) - exact).abs().max().item()
        for kind in ("packed", "plain")
    )
    assert packed <= plain + 1e-4
    assert plain < 0.2


def split(tensors: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    """Fused experts as in quantised releases: one by one, gate and up apart."""
    found = {}
    for name, tensor in tensors.items():
        at, _, kind = name.rpartition("experts.")
        if kind not in ("gate_up_proj", "down_proj"):
            found[name] = tensor
            continue
        for number, expert in enumerate(tensor.mT if transposed else tensor):
            parts = zip(("gate", "up"), expert.chunk(2), strict=True) if kind != "down_proj" else [("down", expert)]
            found |= {f"{at}experts.{number}.{part}_proj.weight": piece.contiguous() for part, piece in parts}
    return found


@pytest.mark.parametrize("golden", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_experts_one_by_one(tmp_path, golden):
    """Experts of families whose plain releases have all experts in one tensor."""
    make(tmp_path, *CASES["blocks"], golden=golden, before=lambda tensors: split(tensors, golden == "qwen3_vl_moe"))
    check_weights(tmp_path / "packed")
    got, expected = (logits(tmp_path / kind, golden=golden, most=2) for kind in ("packed", "plain"))
    assert (got - expected).abs().max().item() < 1e-4
    assert (expected - logits(GOLDENS / golden, golden=golden, most=2)).abs().max().item() > 1e-3  # FP8 moves them


@pytest.mark.parametrize("golden", ["qwen3_next", "qwen3_5"])
def test_rows_in_another_order(tmp_path, golden):
    """Queries with gates, and rows that the file groups by key head, with blocks that end within them."""
    make(tmp_path, *CASES["blocks"], golden=golden)
    got, expected = (logits(tmp_path / kind, golden=golden, most=2) for kind in ("packed", "plain"))
    assert (got - expected).abs().max().item() < 1e-4


def test_fused_experts_lie_one_by_one_in_quantised_files(tmp_path):
    """As in Qwen3.5's FP8 releases."""
    tensors = load_file(GOLDENS / "qwen3_5_moe" / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        at, kind = name.rsplit(".", 1)
        for number, whole in enumerate(tensors.pop(name)):
            parts = {"gate_proj": whole.chunk(2)[0], "up_proj": whole.chunk(2)[1]} if "up" in kind else {kind: whole}
            for part, weight in parts.items():
                tensors[f"{at}.{number}.{part}.weight"] = weight.clone()
    config = json.loads((GOLDENS / "qwen3_5_moe" / "config.json").read_text())
    config["quantization_config"] = CASES["blocks"][1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    check_weights(tmp_path)
    got, expected = (logits(path, golden="qwen3_5_moe", most=2) for path in (tmp_path, GOLDENS / "qwen3_5_moe"))
    assert torch.equal(got, expected)


def test_what_has_no_scale_is_plain(tmp_path):
    """Also within one fused projection, with any piece first."""
    for name, plain in (("first", "q_proj"), ("last", "v_proj")):
        (tmp_path / name).mkdir()
        make(tmp_path / name, *CASES["blocks"], stems=lambda stem, plain=plain: not stem.endswith((plain, "gate_proj")))
        got, expected = (logits(tmp_path / name / kind, most=2) for kind in ("packed", "plain"))
        assert (got - expected).abs().max().item() < 1e-4


def test_forms_differ_between_modules(tmp_path):
    """ "mixed-precision" of compressed-tensors: a scheme for modules by name, and one for all others."""
    config = compressed("mixed-precision", type="int", strategy="channel")
    config["config_groups"]["group_0"]["format"] = "int-quantized"
    blocks = compressed("float-quantized", type="float", strategy="block", block_structure=list(BLOCK))
    targets = [r"re:.*self_attn\.[qkv]_proj"]
    group = blocks["config_groups"]["group_0"] | {"targets": targets, "format": blocks["format"]}
    config["config_groups"]["group_1"] = group

    def pack(stem: str, weight: torch.Tensor) -> Packed:
        blocked = stem.endswith(("q_proj", "k_proj", "v_proj"))
        return in_blocks(stem, weight, ".weight_scale") if blocked else integers(stem, weight)

    make(tmp_path, pack, config)
    assert (logits(tmp_path / "packed", most=2) - logits(tmp_path / "plain", most=2)).abs().max().item() < 1e-4


def test_8_bits_stay_8_bits(tmp_path):
    make(tmp_path, *CASES["blocks"], golden="qwen3_moe")
    forms: list[object] = []

    def experts(gate_up, down, *others):
        forms.extend((gate_up, down))
        return reference.TABLE.prepare_experts(gate_up, down, *others)

    def quantised(weight, bias, dtype):
        forms.append(weight)
        return reference.TABLE.prepare_quantised(weight, bias, dtype)

    ops = reference.TABLE.__class__(
        **{name: getattr(reference.TABLE, name) for name in reference.TABLE.__slots__}
        | {"prepare_experts": experts, "prepare_quantised": quantised}
    )
    load_model(tmp_path / "packed", dtype=torch.bfloat16, ops=ops)
    assert len(forms) > 4
    assert all(isinstance(form, ScaledWeight) and form.values.dtype == torch.float8_e4m3fn for form in forms)


@pytest.fixture
def folder(tmp_path):
    make(tmp_path, *CASES["blocks"])
    return tmp_path / "packed"


def refusal(folder, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(folder, dtype=torch.float32)
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message
    return caught.value.message


SCALE = "model.layers.0.mlp.up_proj.weight_scale_inv"


def test_missing_scale(folder):
    assert "up_proj.weight is stored as F8_E4M3" in refusal(folder, lambda tensors: tensors.pop(SCALE))


def test_scales_of_another_grid(folder):
    message = refusal(folder, lambda tensors: tensors.update({SCALE: torch.ones(2, 2)}))
    assert "up_proj.weight_scale_inv is [2, 2], expected for a weight [144, 64] is [6, 2]" in message


def test_values_of_another_type(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    message = refusal(folder, lambda tensors: tensors.update({name: torch.ones(144, 64)}))
    assert "up_proj.weight is stored as floating point numbers, expected is F8_E4M3 or I8" in message


def test_no_word_in_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "is stored as F8_E4M3, which is not supported" in refusal(folder, lambda tensors: None)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**FP8, "fmt": "e5m2"}, "fp8 of type 'e5m2'"),
        ({**FP8, "weight_block_size": [128]}, "blocks of [128]"),
        ({**FP8, "ignored_layers": "lm_head"}, "not a list of names"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ'"),
        ({"quant_method": "compressed-tensors"}, "without config_groups"),
        (compressed("marlin-24", type="int", num_bits=4), "'marlin-24' with 4 bits of int"),
        (compressed("pack-quantized", type="int", num_bits=3), "'pack-quantized' with 3 bits of int"),
        (compressed("mxfp4-pack-quantized", type="float", num_bits=4), "'mxfp4-pack-quantized'"),
        ({**compressed("float-quantized", type="float"), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:mx"}, "packing_format"),
    ],
)
def test_refused(tmp_path, config, reason):
    given = json.loads((GOLDENS / "llama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "quantization_config": config}))
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path, dtype=torch.float32)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
