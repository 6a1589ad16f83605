"""A GGUF file of each family gives what its Hugging Face folder gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

from lightllm_mp.kernels import reference
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.preflight import check_weights
from lightllm_mp.models.families import FAMILIES
from lightllm_mp.models.model_config import gguf_model, hf_model, read_model_config
from lightllm_mp.models.parallel.group import SingleRank
from tests.models.checkpoint import gguf_file
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.golden import GOLDENS, TOLERANCE, check_greedy, check_prompt, prompts
from tests.models.runner import Runner

SAID_BY_KEYS: dict[str, dict[str, Any]] = {
    "gemma2": {"attention.scale": 24**-0.5},
    "gemma3": {"attention.sliding_window_pattern": 3},
    "baichuan_13b": {"attention.max_alibi_bias": 8.0},
}
"""The converter leaves some values to the program, which knows the released models by their sizes. The goldens have
other sizes and need the format's keys for these values."""

OLD_DEEPSEEK = {
    "attention.key_length": 24,
    "attention.value_length": 16,
    "attention.key_length_mla": None,
    "attention.value_length_mla": None,
    "attention.head_count_kv": 4,
}
"""Keys of old files, whose sizes are not those of the latent."""

FOLDERS = (
    *("llama", "llama3", "llama_linear", "llama_yarn", "yi", "internlm", "internlm2", "minicpm", "mixtral"),
    *("qwen2", "qwen3", "qwen3_moe", "bloom", "stablelm", "chatglm2", "gemma2", "gemma3", "deepseek_v2", "gpt_oss"),
    *("deepseek_v3", "glm4_moe", "minimax_m2", "baichuan_7b", "baichuan_13b", "llava_hf", "qwen2_5_vl"),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are faster so, especially on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_golden(path: Path, folder: str) -> float:
    """The largest difference of a logit."""
    check_weights(path)
    runner, worst = Runner(load_model(path, dtype=torch.float32)), 0.0
    for prompt in prompts(folder):
        seq = runner.sequence(prompt)
        logits = runner.prefill(seq, prompt.ids)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])
        start, end = prompt.span
        worst = max(worst, (logits[start:end] - prompt.logits).abs().max().item())
        worst = max(worst, (seen[0][-1] - prompt.last_logits).abs().max().item())
    return worst


@pytest.mark.parametrize("folder", FOLDERS)
def test_golden(tmp_path, folder, record_property):
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, keys=SAID_BY_KEYS.get(folder))
    record_property("worst", check_golden(path, folder))


@pytest.mark.parametrize(("folder", "keys"), [("mixtral", {}), ("deepseek_v2", OLD_DEEPSEEK)])
def test_golden_in_an_old_layout(tmp_path, folder, keys):
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, keys=keys, old=True)
    check_golden(path, folder)


SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
GEMMA = {**SIZES, "head_dim": 32, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
GEMMA3 = {**GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 16, "rope_theta": 1e6}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FACTORS = [1.0 + i / 8 for i in range(8)]
LONGROPE = {"type": "longrope", "short_factor": FACTORS, "long_factor": [2 * x for x in FACTORS]}
DEEPSEEK = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 16.0,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2}
RANDOM: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen2 yarn": {"model_type": "qwen2", "rope_scaling": YARN, "tie_word_embeddings": True},
    "qwen2_moe": {"model_type": "qwen2_moe", **MOE, "shared_expert_intermediate_size": 40},
    "old qwen2_moe": {
        "model_type": "qwen2_moe",
        **MOE,
        "intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **MOE, "head_dim": 32, "norm_topk_prob": True},
    "gemma": {**GEMMA, "model_type": "gemma"},
    "gemma2 27b": {
        **GEMMA,
        "model_type": "gemma2",
        "num_hidden_layers": 46,
        "sliding_window": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3": {**GEMMA3, "query_pre_attn_scalar": 32, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5, "intermediate_size": 256, "num_key_value_heads": 4},
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 256, "partial_rotary_factor": 0.5},
    "phi3 longrope": {"model_type": "phi3", "original_max_position_embeddings": 40, "rope_scaling": LONGROPE},
    "stablelm 12b": {
        "model_type": "stablelm",
        "use_parallel_residual": True,
        "qk_layernorm": True,
        "layer_norm_eps": 1e-5,
        "rms_norm_eps": None,
        "partial_rotary_factor": 0.25,
    },
    "starcoder2": {"model_type": "starcoder2", "norm_epsilon": 1e-5, "rms_norm_eps": None, "rope_theta": 1e5},
    "deepseek_v2": DEEPSEEK,
    "minicpm": {"model_type": "minicpm", "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4},
}
KEYS: dict[str, dict[str, Any]] = {
    "old qwen2_moe": {"expert_feed_forward_length": None, "expert_shared_feed_forward_length": None},
    "minicpm": {"embedding_scale": None, "residual_scale": None, "logit_scale": None},
}
"""Of the oldest files."""


def random_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with random weights under the family's Hugging Face names."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    family, spec = hf_model(folder)
    random = torch.Generator().manual_seed(3)
    pieces = [piece for param in family.hf_weights(spec) for piece in param.pieces]
    save_file({p.name: torch.randn(p.shape, generator=random) * 0.2 for p in pieces}, folder / "model.safetensors")
    return folder


def same(path: Path, folder: Path) -> float:
    """Prefills two prompts and decodes: a file and a folder give the same ids. Returns the largest difference."""
    check_weights(path)
    mine, theirs = (Runner(load_model(at, dtype=torch.float32)) for at in (path, folder))
    random, worst = torch.Generator().manual_seed(5), 0.0
    for length in (20, 70):
        tokens = torch.randint(3, 256, (length,), generator=random).tolist()
        results = []
        for runner in (mine, theirs):
            seq = runner.sequence()
            logits = runner.prefill(seq, tokens)
            ids, seen = runner.decode([(seq, logits)], 12)
            results.append((ids, torch.cat((logits, seen[0]))))
        assert results[0][0] == results[1][0]
        worst = max(worst, (results[0][1] - results[1][1]).abs().max().item())
    assert worst < TOLERANCE
    return worst


@pytest.mark.parametrize("name", RANDOM)
def test_random(tmp_path, name, record_property):
    path, folder = tmp_path / "model.gguf", random_folder(tmp_path / "hf", {**SIZES, **RANDOM[name]})
    write_gguf(path, folder, keys=KEYS.get(name))
    record_property("worst", same(path, folder))


@pytest.mark.parametrize(
    ("folder", "change"),
    [
        ("starcoder", {"activation_function": "gelu_pytorch_tanh"}),
        ("qwen", {"use_dynamic_ntk": False, "use_logn_attn": False}),
    ],
)
def test_what_the_format_can_say(tmp_path, folder, change, record_property):
    """Goldens with options that have no key, without these options."""
    altered = tmp_path / "hf"
    altered.mkdir()
    config = json.loads((GOLDENS / folder / "config.json").read_text()) | change
    (altered / "config.json").write_text(json.dumps(config))
    (altered / "model.safetensors").symlink_to(GOLDENS / folder / "model.safetensors")
    write_gguf(tmp_path / "model.gguf", altered)
    record_property("worst", same(tmp_path / "model.gguf", altered))


def test_groups_of_experts_that_old_files_of_deepseek_v3_do_not_mention(tmp_path):
    path = tmp_path / "model.gguf"
    silent = {"expert_group_count": None, "expert_group_used_count": None}
    for experts, groups in ((256, (8, 4)), (384, (1, 1))):
        write_gguf(path, "deepseek_v3", keys={**silent, "expert_count": experts})
        moe = read_model_config(path).moe
        assert moe is not None
        assert (moe.groups, moe.top_groups) == groups


def test_a_squeezed_gate_of_shared_experts(tmp_path):
    path, folder = tmp_path / "model.gguf", random_folder(tmp_path / "hf", {**SIZES, **RANDOM["qwen2_moe"]})
    written = write_gguf(path, folder, old=True)
    assert written["blk.0.ffn_gate_inp_shexp.weight"].shape == (64,)
    same(path, folder)


@pytest.mark.parametrize("renormalise", [True, False])
def test_weights_of_experts_may_be_said_to_be_renormalised(tmp_path, renormalise):
    config = {**SIZES, **RANDOM["qwen3_moe"], "norm_topk_prob": renormalise}
    path, folder = tmp_path / "model.gguf", random_folder(tmp_path / "hf", config)
    write_gguf(path, folder, keys={"expert_weights_norm": renormalise})
    same(path, folder)


@pytest.mark.parametrize("folder", ["mixtral", "deepseek_v2", "internlm2", "bloom"])
def test_quantised_values(tmp_path, folder):
    """A quantised file computes with the values that its blocks encode."""
    q8, plain, kind = tmp_path / "q8.gguf", tmp_path / "plain.gguf", GGMLQuantizationType.Q8_0
    write_gguf(q8, folder, kind=kind)
    write_gguf(plain, folder, through=lambda values: dequantize(quantize(values, kind), kind))
    assert read_model_config(q8).file_dtype == "q8_0"
    same(q8, plain)


@pytest.mark.parametrize("folder", ["llama", "mixtral", "deepseek_v2", "internlm2", "bloom", "qwen2_moe"])
def test_rows_may_stay_packed(tmp_path, folder):
    """Reordering rows does the same to the bytes of quantised rows; only `kv_b` is transposed, and it is no plain
    projection."""
    path, kind = tmp_path / "model.gguf", GGMLQuantizationType.Q8_0
    source = random_folder(tmp_path / "hf", {**SIZES, **RANDOM[folder]}) if folder in RANDOM else folder
    write_gguf(path, source, kind=kind)
    family, spec, keys = gguf_model(path)
    file = keys.file
    data, moved = path.read_bytes(), 0
    assert family.gguf_weights is not None
    for param in family.gguf_weights(spec, keys):
        for piece in param.pieces:
            tensor = file.tensors[piece.name]
            if piece.transform is None or tensor.type != kind or param.target.endswith("kv_b"):
                continue
            rows = np.frombuffer(data, np.uint8, tensor.size, tensor.start).reshape(*tensor.shape[:-1], -1)
            assert (dequantize(piece.transform(rows), kind) == piece.transform(file.read(piece.name))).all()
            moved += 1
    assert moved or folder in ("bloom",)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2", "gemma3", "stablelm"])
def test_transforms_take_numpy_and_torch(tmp_path, name):
    path = tmp_path / "model.gguf"
    write_gguf(path, name, keys=SAID_BY_KEYS.get(name))
    family, spec, keys = gguf_model(path)
    file = keys.file
    assert family.gguf_weights is not None
    for param in family.gguf_weights(spec, keys):
        for piece in param.pieces:
            values = file.read(piece.name)
            theirs = piece.transform(values) if piece.transform else values
            ours = piece.transform(torch.from_numpy(values)) if piece.transform else torch.from_numpy(values)
            assert theirs.shape == tuple(ours.shape) == piece.shape
            assert (theirs == ours.numpy()).all()


class OneOfTwo(SingleRank):
    """A rank that computes nothing."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, 2


def tensors_of(part: Any) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from tensors_of(inner)
    elif is_dataclass(part):
        yield from tensors_of([getattr(part, field.name) for field in fields(part)])


@pytest.mark.parametrize("folder", ["mixtral", "deepseek_v2", "bloom", "stablelm"])
def test_two_ranks_take_what_the_folder_gives_them(tmp_path, folder):
    """Each rank's parameters, of a file and of a folder."""
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, keys=SAID_BY_KEYS.get(folder))
    for rank in range(2):
        mine, theirs = (
            load_model(at, dtype=torch.float32, ops=reference.TABLE, group=OneOfTwo(rank))
            for at in (path, GOLDENS / folder)
        )
        assert mine.weight_bytes == theirs.weight_bytes
        pairs = list(zip(tensors_of(mine.layers), tensors_of(theirs.layers), strict=True))
        assert len(pairs) > 5 * len(mine.layers)
        assert all(torch.equal(ours, named) for ours, named in pairs)


def test_every_architecture_is_one_family_s_and_is_written_here():
    names = [name for family in FAMILIES for name in family.gguf_architectures]
    written = {MODEL_ARCH_NAMES[architecture] for architecture, *_ in gguf_file.FAMILIES.values()}
    assert sorted(names) == sorted(written)
