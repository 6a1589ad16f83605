"""Reward models: the recorded scores, and Qwen2's two kinds against transformers on tiny random weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.models.spec import PoolingSpec
from tests.models.golden import GOLDENS, TOLERANCE
from tests.models.runner import Runner

FOLDER = GOLDENS / "internlm2_reward"
PROMPTS = [prompt["input_ids"] for prompt in json.loads((FOLDER / "golden.json").read_text())["prompts"]]
QWEN2 = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(load_model(FOLDER, dtype=torch.float32))


@pytest.fixture(scope="module")
def recorded() -> list[torch.Tensor]:
    data = load_file(FOLDER / "golden.safetensors")
    return [data[f"p{i}.v_head_all"].flatten() for i in range(len(PROMPTS))]


def test_spec():
    spec = read_model_config(FOLDER)
    assert spec.pooling == PoolingSpec(task="score", width=1, head="linear", end_token=251)


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_every_position_of_the_golden(runner, recorded, chunk):
    for ids, expected in zip(PROMPTS, recorded, strict=True):
        assert (runner.prefill(runner.sequence(), ids, chunk) - expected).abs().max() < TOLERANCE


def test_together(runner, recorded):
    for got, expected in zip(runner.step([(runner.sequence(), ids) for ids in PROMPTS]), recorded, strict=True):
        assert (got - expected).abs().max() < TOLERANCE


@pytest.fixture
def tokens() -> list[int]:
    return torch.randint(3, 256, (50,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.slow
def test_qwen2_classifier_of_one_label(tmp_path, tokens):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2ForSequenceClassification(transformers.Qwen2Config(**QWEN2, num_labels=1)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    runner = Runner(load_model(tmp_path, dtype=torch.float32))
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0, 0]
    assert (runner.prefill(runner.sequence(), tokens)[-1] - expected).abs() < TOLERANCE


@pytest.mark.slow
def test_qwen2_reward_head_of_two_layers(tmp_path, tokens):
    """The network of Qwen2.5-Math-RM: score = Linear(ReLU(Linear(hidden)))."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**QWEN2)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    head = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForRewardModel"]}))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, **head.state_dict(prefix="score.")}, tmp_path / "model.safetensors")
    runner = Runner(load_model(tmp_path, dtype=torch.float32))
    with torch.inference_mode():
        expected = head(theirs.model(torch.tensor([tokens])).last_hidden_state[0])[:, 0]
        assert (runner.prefill(runner.sequence(), tokens) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["Qwen2ForProcessRewardModel"]}, "process reward models"),
        ({"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 3}, "a classifier of 3 labels"),
    ],
)
def test_other_heads_are_refused(tmp_path, changes, reason):
    config = json.loads((GOLDENS / "qwen2" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=reason):
        read_model_config(tmp_path)
