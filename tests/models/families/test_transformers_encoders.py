"""Encoders, cross-encoders and classifiers against transformers on tiny random models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.models.checkpoint.loader import load_model
from tests.engine.test_pooling import embed
from tests.models.golden import TOLERANCE

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.2,
}
LENGTHS = (1, 2, 7, 33, 64, 100, 128)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(5)
    return [torch.randint(3, 256, (length,), generator=random).tolist() for length in LENGTHS]


def saved(theirs, path, **files: Any):
    """The model in a folder with these JSON files; weights that are all ones or zeros get other values."""
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 2, std=0.2)
    theirs.save_pretrained(path)
    for name, content in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps(content))
    return theirs.eval()


def modules(mode: str, *, normalize: bool) -> dict[str, Any]:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")][: 3 if normalize else 2]
    return {
        "modules": [
            {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ],
        "1_Pooling__config": {f"pooling_mode_{mode}": True},
    }


def pooled(hidden: torch.Tensor, mode: str, *, normalize: bool) -> np.ndarray:
    row = hidden.mean(0) if mode == "mean_tokens" else hidden[0]
    return (row / row.norm() if normalize else row).numpy()


MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "bert-tanh": lambda: transformers.BertModel(
        transformers.BertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-5)
    ),
    "xlm-roberta": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES, type_vocab_size=1)),
    "nomic": lambda: transformers.NomicBertModel(transformers.NomicBertConfig(**SIZES)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("mode", "normalize"), [("mean_tokens", True), ("cls_token", False)])
def test_embeddings(tmp_path, prompts, name, mode, normalize):
    theirs = saved(MODELS[name](), tmp_path, **modules(mode, normalize=normalize))
    with torch.inference_mode():
        expected = [
            pooled(theirs(torch.tensor([ids])).last_hidden_state[0], mode, normalize=normalize) for ids in prompts
        ]
    for ops in (None, reference.TABLE):
        model = load_model(tmp_path, dtype=torch.float32, ops=ops)
        rows = embed(model, prompts, step_tokens=130)
        for row, wanted in zip(rows, expected, strict=True):
            assert np.abs(row - wanted).max() < TOLERANCE
    alone = [embed(load_model(tmp_path, dtype=torch.float32), [ids], step_tokens=200)[0] for ids in prompts]
    assert [row.tobytes() for row in alone] == [
        row.tobytes() for row in embed(load_model(tmp_path, dtype=torch.float32), prompts, step_tokens=400)
    ]


@pytest.mark.parametrize(
    ("name", "take"), [("bert", "cls_token"), ("xlm-roberta", "cls_token"), ("nomic", "mean_tokens")]
)
def test_a_folder_that_does_not_say_how(tmp_path, prompts, name, take):
    theirs = saved(MODELS[name](), tmp_path)
    rows = embed(load_model(tmp_path, dtype=torch.float32), prompts, step_tokens=130)
    with torch.inference_mode():
        for row, ids in zip(rows, prompts, strict=True):
            expected = pooled(theirs(torch.tensor([ids])).last_hidden_state[0], take, normalize=True)
            assert np.abs(row - expected).max() < TOLERANCE


@pytest.mark.parametrize("segments", [False, True])
def test_bert_cross_encoder(tmp_path, prompts, segments):
    config = transformers.BertConfig(**SIZES, num_labels=1)
    theirs = saved(transformers.BertForSequenceClassification(config), tmp_path)
    types = [[int(segments and i >= len(ids) // 2) for i in range(len(ids))] for ids in prompts]
    asked = [[i + 256 * t for i, t in zip(ids, kinds, strict=True)] for ids, kinds in zip(prompts, types, strict=True)]
    model = load_model(tmp_path, dtype=torch.float32)
    assert model.spec.ids == 512
    rows = embed(model, asked, step_tokens=130)
    with torch.inference_mode():
        for row, ids, kinds in zip(rows, prompts, types, strict=True):
            expected = theirs(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits[0].numpy()
            assert np.abs(row - expected).max() < TOLERANCE


def test_xlm_roberta_cross_encoder(tmp_path, prompts):
    config = transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1, num_labels=1)
    theirs = saved(transformers.XLMRobertaForSequenceClassification(config), tmp_path)
    model = load_model(tmp_path, dtype=torch.float32)
    assert model.spec.pooling is not None
    assert (model.spec.pooling.pairs, model.spec.pooling.raw, model.spec.ids) == ("tokenizer", False, 256)
    rows = embed(model, prompts, step_tokens=130)
    with torch.inference_mode():
        for row, ids in zip(rows, prompts, strict=True):
            assert np.abs(row - theirs(torch.tensor([ids])).logits[0].numpy()).max() < TOLERANCE


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Mistral"])
def test_decoders_as_classifiers(tmp_path, prompts, kind):
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, num_key_value_heads=2, head_dim=16, num_labels=1, pad_token_id=0
    )
    theirs = saved(getattr(transformers, f"{kind}ForSequenceClassification")(config), tmp_path)
    rows = embed(load_model(tmp_path, dtype=torch.float32), prompts, step_tokens=20)
    with torch.inference_mode():
        for row, ids in zip(rows, prompts, strict=True):
            assert np.abs(row - theirs(torch.tensor([ids])).logits[0].numpy()).max() < TOLERANCE


def test_the_keys_and_names_of_the_first_nomic_folders(tmp_path, prompts):
    theirs = saved(MODELS["nomic"](), tmp_path)
    config = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "vocab_size": 256,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 3,
        "n_inner": 96,
        "n_positions": 8192,
        "max_trained_positions": 130,
        "activation_function": "swiglu",
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "layer_norm_epsilon": 1e-12,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "use_rms_norm": False,
        "type_vocab_size": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path, dtype=torch.float32)
    assert model.spec.max_context == 130
    rows = embed(model, prompts, step_tokens=130)
    with torch.inference_mode():
        for row, ids in zip(rows, prompts, strict=True):
            expected = pooled(theirs(torch.tensor([ids])).last_hidden_state[0], "mean_tokens", normalize=True)
            assert np.abs(row - expected).max() < TOLERANCE
