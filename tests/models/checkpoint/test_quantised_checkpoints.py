"""AWQ and GPTQ checkpoints, packed by the formats' descriptions, and quantisation while loading."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels import reference
from lightllm_mp.kernels.reference.quantised import expanded, quantise
from lightllm_mp.kernels.select import op_table
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.preflight import check_weights
from lightllm_mp.models.model_config import read_model_config
from tests.models.checkpoint.quantised_folders import (
    GROUP,
    awq,
    compressed,
    compressed_words,
    gptq,
    logits,
    make,
    nvfp4,
)
from tests.models.golden import GOLDENS


def shuffle_of(stem: str, k: int) -> torch.Tensor:
    """An act-order as in GPTQ: projections of the same input share it."""
    kind = "attention" if stem.endswith(("q_proj", "k_proj", "v_proj")) else stem[-7:]
    return torch.randperm(k, generator=torch.Generator().manual_seed(len(kind)))


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
CASES = {
    "awq": (lambda stem, w: awq(stem, w, GROUP), AWQ),
    "awq in its first spelling": (
        lambda stem, w: awq(stem, w, GROUP),
        {"quant_method": "awq", "w_bit": 4, "q_group_size": GROUP, "zero_point": True, "version": "GEMM"},
    ),
    "gptq": (lambda stem, w: gptq(stem, w, GROUP), GPTQ),
    "gptq, version 2": (lambda stem, w: gptq(stem, w, GROUP, version=2), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "gptq, one group": (lambda stem, w: gptq(stem, w, w.shape[1]), {**GPTQ, "group_size": -1}),
    "gptq, act-order": (
        lambda stem, w: gptq(stem, w, GROUP, act_order=shuffle_of(stem, w.shape[1])),
        {**GPTQ, "desc_act": True},
    ),
    "gptq, act-orders that differ": (
        lambda stem, w: gptq(stem, w, GROUP, act_order=torch.randperm(w.shape[1])),
        {**GPTQ, "desc_act": True},
    ),
}

WORDS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
MORE_CASES = {
    "awq without zero points": (lambda stem, w: awq(stem, w, GROUP, symmetric=True), {**AWQ, "zero_point": False}),
    "gptq, 8 bits": (lambda stem, w: gptq(stem, w, GROUP, bits=8, symmetric=True), {**GPTQ, "bits": 8}),
    "gptq, 8 bits with zero points": (lambda stem, w: gptq(stem, w, GROUP, bits=8), {**GPTQ, "bits": 8}),
    "gptq, bits by module": (
        lambda stem, w: gptq(stem, w, GROUP, bits=8 if stem.endswith("up_proj") else 4),
        {**GPTQ, "dynamic": {"-:.*lm_head": {}, r"+:.*\.up_proj": {"bits": 8}}},
    ),
    "auto-round": (
        lambda stem, w: gptq(stem, w, GROUP),
        {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "packing_format": "auto_round:auto_gptq"},
    ),
    "compressed-tensors": (lambda stem, w: compressed_words(stem, w, GROUP), compressed("pack-quantized", **WORDS)),
    "compressed-tensors with zero points and act-order": (
        lambda stem, w: compressed_words(stem, w, GROUP, symmetric=False, act_order=torch.arange(w.shape[1]).flip(0)),
        compressed("pack-quantized", **WORDS, actorder="group"),
    ),
    "compressed-tensors, 8 bits by channel": (
        lambda stem, w: compressed_words(stem, w, w.shape[1], bits=8),
        compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
    ),
    "nvfp4": (
        lambda stem, w: nvfp4(stem, w, modelopt=False),
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
    ),
    "nvfp4, modelopt": (
        lambda stem, w: nvfp4(stem, w, modelopt=True),
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
    ),
}


@pytest.mark.parametrize("case", MORE_CASES)
def test_variants(tmp_path, case):
    pack, config = MORE_CASES[case]
    make(tmp_path, pack, config)
    check_weights(tmp_path / "packed")
    expected = logits(tmp_path / "plain", most=2)
    assert (logits(tmp_path / "packed", most=2) - expected).abs().max().item() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_same_as_expanded(tmp_path, case):
    pack, config = CASES[case]
    make(tmp_path, pack, config)
    expected = logits(tmp_path / "plain")
    assert (logits(tmp_path / "packed") - expected).abs().max().item() < 1e-4
    assert (logits(tmp_path / "packed", ops=reference.TABLE) - expected).abs().max().item() < 1e-4


def test_what_is_not_packed_is_plain(tmp_path):
    """`modules_to_not_convert`, even within one fused projection."""
    make(tmp_path, *CASES["awq"], stems=lambda stem: "layers.1" not in stem and not stem.endswith("k_proj"))
    assert (logits(tmp_path / "packed") - logits(tmp_path / "plain")).abs().max().item() < 1e-4


def test_bin_file(tmp_path):
    make(tmp_path, *CASES["gptq"])
    file = tmp_path / "packed" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "packed" / "pytorch_model.bin")
    file.unlink()
    assert (logits(tmp_path / "packed") - logits(tmp_path / "plain")).abs().max().item() < 1e-4


@pytest.fixture
def packed(tmp_path):
    """A GPTQ folder and its tensors."""
    make(tmp_path, *CASES["gptq"])
    return tmp_path / "packed", load_file(tmp_path / "packed" / "model.safetensors")


def refusal(folder, tensors=None, **options) -> str:
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(folder, dtype=torch.float32, **options)
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message
    return caught.value.message


def test_biases_of_old_files(packed):
    folder, tensors = packed
    bias = "model.layers.1.mlp.up_proj.bias"
    save_file({**tensors, bias: torch.zeros(144)}, folder / "model.safetensors")
    assert (logits(folder) - logits(folder.parent / "plain")).abs().max().item() < 1e-4
    assert f"{bias} is not zero" in refusal(folder, {**tensors, bias: torch.ones(144)})


def test_groups_out_of_range(packed):
    folder, tensors = packed
    tensors["model.layers.0.mlp.up_proj.g_idx"][5] = 4
    assert "up_proj.g_idx has groups beyond 3" in refusal(folder, tensors)


def test_missing_part(packed):
    folder, tensors = packed
    del tensors["model.layers.0.mlp.up_proj.scales"]
    assert "up_proj.scales is missing, expected is [4, 144]" in refusal(folder, tensors)


def test_misshaped_part(packed):
    folder, tensors = packed
    name = "model.layers.0.self_attn.q_proj.qweight"
    tensors[name] = tensors[name][:, :32].contiguous()
    assert "q_proj.scales is [4, 64], expected is [4, 32]" in refusal(folder, tensors)


def test_packed_and_plain(packed):
    folder, tensors = packed
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(144, 64)
    assert "up_proj.weight is both packed and plain" in refusal(folder, tensors)


def test_codes_of_another_type(packed):
    folder, tensors = packed
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(8, 144)
    assert "up_proj.qweight is stored as floating point numbers, expected is I32" in refusal(folder, tensors)


def test_quantised_twice(packed):
    assert "quantised already" in refusal(packed[0], quantization="int8")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**GPTQ, "bits": 3}, "3 bits"),
        ({**AWQ, "bits": "4"}, "'4' bits"),
        ({**AWQ, "version": "gemv"}, "AWQ layout 'gemv'"),
        ({**AWQ, "version": "exllama"}, "AWQ layout 'exllama'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "GPTQ layout 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "repacked"),
        ({**GPTQ, "group_size": 0}, "group_size 0"),
        ({**GPTQ, "group_size": "128"}, "group_size '128'"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 3}}}, "3 bits"),
        ({**GPTQ, "dynamic": {"-:(": {}}}, "the pattern"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({}, "quant_method None"),
        ("awq", "not an object"),
    ],
)
def test_refused(tmp_path, config, reason):
    given = json.loads((GOLDENS / "llama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "quantization_config": config}))
    with pytest.raises(ModelError) as caught:
        read_model_config(tmp_path)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.06), ("fp8", 0.3)])
@pytest.mark.parametrize("ops", [reference.TABLE, op_table("cpu", torch.float32)], ids=lambda ops: ops.name)
def test_quantising_while_loading(tmp_path, kind, error, ops):
    """Equal to a folder whose projections were quantised and expanded before; near the original."""
    make(tmp_path, lambda stem, w: ({}, expanded(quantise(w, kind), torch.float32)), {})
    got = logits(GOLDENS / "llama", quantization=kind, ops=ops)
    assert (got - logits(tmp_path / "plain")).abs().max().item() < 1e-4
    expected = logits(GOLDENS / "llama")
    assert 1e-3 < ((got - expected).norm() / expected.norm()).item() < error


def test_head_and_embedding_stay_as_they_are():
    plain = load_model(GOLDENS / "llama", dtype=torch.float32, ops=reference.TABLE)
    seen = []

    def prepare(weight, bias, dtype):
        seen.append(tuple(weight.values.shape))
        return reference.TABLE.prepare_quantised(weight, bias, dtype)

    ops = replace(reference.TABLE, prepare_quantised=prepare)
    load_model(GOLDENS / "llama", dtype=torch.float32, ops=ops, quantization="int8")
    assert len(seen) == 4 * plain.spec.layers
    assert (256, 64) not in seen


GPU_CASES = {
    "awq": (lambda stem, w: awq(stem, w, 32), {**AWQ, "group_size": 32}),
    "gptq": (lambda stem, w: gptq(stem, w, 32), {**GPTQ, "group_size": 32}),
    "gptq, act-order": (
        lambda stem, w: gptq(stem, w, 32, act_order=shuffle_of(stem, w.shape[1])),
        {**GPTQ, "group_size": 32, "desc_act": True},
    ),
}
"""Groups that the kernels read directly, except the last one of `down_proj`'s 144 inputs."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", GPU_CASES)
def test_on_a_gpu(tmp_path, case):
    make(tmp_path, *GPU_CASES[case])
    expected = logits(tmp_path / "plain", device="cuda")
    assert (logits(tmp_path / "packed", device="cuda") - expected).abs().max().item() < 1e-4
    for dtype, chunk, error in ((torch.float16, None, 0.01), (torch.float16, 1, 0.01), (torch.bfloat16, 20, 0.06)):
        got = logits(tmp_path / "packed", device="cuda", dtype=dtype, chunk=chunk)
        assert ((got - expected).norm() / expected.norm()).item() < error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.06), ("fp8", 0.3)])
def test_quantising_on_a_gpu(kind, error):
    expected = logits(GOLDENS / "llama")
    for dtype, chunk in ((torch.float32, None), (torch.bfloat16, 1), (torch.bfloat16, None)):
        got = logits(GOLDENS / "llama", device="cuda", dtype=dtype, chunk=chunk, quantization=kind)
        assert ((got - expected).norm() / expected.norm()).item() < error


@pytest.mark.parametrize("act_order", [False, True])
def test_experts_of_4_bits(tmp_path, act_order):
    """Packed for a model in bfloat16 with the C extension, except those whose inputs are in another order."""

    def pack(stem: str, weight: torch.Tensor):
        order = torch.arange(weight.shape[1]).flip(0) if act_order else None
        return compressed_words(stem, weight, 32, act_order=order)

    config = compressed("pack-quantized", **{**WORDS, "group_size": 32})
    stems = {
        "golden": "qwen3_moe",
        "stems": lambda stem: "experts" in stem and not stem.endswith("1.mlp.experts.1.up_proj"),
    }
    make(tmp_path, pack, config, **stems)
    for dtype, error in ((torch.float32, 1e-4), (torch.bfloat16, 0.06)):
        got, expected = (
            logits(tmp_path / kind, golden="qwen3_moe", dtype=dtype, most=2) for kind in ("packed", "plain")
        )
        assert (got - expected).abs().max().item() < error
    if op_table("cpu", torch.bfloat16).block_types and not act_order:
        sizes = [load_model(tmp_path / kind, dtype=torch.bfloat16).weight_bytes for kind in ("packed", "plain")]
        assert sizes[0] < 0.95 * sizes[1]
