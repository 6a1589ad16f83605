"""Pooling as a folder's files describe it, and refused files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.families.common.pooling import PAIRS
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.models.spec import PoolingSpec
from tests.models.golden import GOLDENS


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDENS / "qwen3_embedding", tmp_path / "model")


def test_the_golden_folders():
    embedding = read_model_config(GOLDENS / "qwen3_embedding").pooling
    assert embedding == PoolingSpec(task="embed", width=64, take="last", normalize=True, shorter=())
    score = read_model_config(GOLDENS / "qwen3_reranker").pooling
    assert score == PoolingSpec(task="score", width=1, head="linear", tokens=(93, 21), pairs=PAIRS["qwen3"])
    assert read_model_config(GOLDENS / "qwen3").pooling is None


@pytest.mark.parametrize(
    ("pooling", "take"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 64}, "mean"),
    ],
)
def test_modes(folder, pooling, take):
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if take == "cls":  # the first token of a decoder sees no other
        with pytest.raises(ModelError, match="cls"):
            read_model_config(folder)
    else:
        assert read_model_config(folder).pooling.take == take


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens is not supported"),
        ("1_Pooling/config.json", {}, "without a mode is not supported"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls, mean"),
        ("modules.json", {"type": "Pooling"}, "list of JSON objects"),
        ("modules.json", [{"type": "a.Dense", "path": "2_Dense"}], "module 'Dense' is not supported"),
        ("modules.json", [{"type": "a.Pooling", "path": "../1_Pooling"}], "is not a folder of the model"),
        ("modules.json", [{"type": "a.Pooling", "path": ".."}], "is not a folder of the model"),
        ("modules.json", [{"path": ""}], "'type' is missing"),
    ],
)
def test_what_is_refused(folder, name, content, reason):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=reason):
        read_model_config(folder)


@pytest.mark.parametrize("tokens", [{"true_token_id": 93}, {"true_token_id": 93, "false_token_id": 256}])
def test_a_token_score_needs_two_tokens(tmp_path, tokens):
    folder = shutil.copytree(GOLDENS / "qwen3_reranker", tmp_path / "model")
    (folder / "1_LogitScore/config.json").write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="two token ids"):
        read_model_config(folder)


def test_a_chat_template_of_queries_and_documents(tmp_path):
    folder = shutil.copytree(GOLDENS / "qwen3_reranker", tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} document{% endfor %}")
    assert read_model_config(folder).pooling.pairs == "chat"


def test_the_longest_text(folder):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    assert read_model_config(folder).max_context == 512


ENCODER = json.loads((GOLDENS / "bge_m3/config.json").read_text())
CROSS_ENCODER = {**ENCODER, "architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def test_the_activation_of_newer_cross_encoders(tmp_path):
    said = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity", "prompts": {}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(said))
    assert encoder(tmp_path, CROSS_ENCODER).pooling.raw


def encoder(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_model_config(folder)


def test_an_encoder():
    spec = read_model_config(GOLDENS / "bge_m3")
    assert spec.pooling == PoolingSpec(task="embed", width=64, take="cls", normalize=True)
    assert (spec.causal, spec.max_context, spec.learned_positions, spec.token_types) == (False, 128, 128, 1)


@pytest.mark.parametrize(
    ("changes", "raw"),
    [
        ({}, False),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, False),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.4.0"}}, True),
    ],
)
def test_a_cross_encoder(tmp_path, changes, raw):
    pooling = encoder(tmp_path, CROSS_ENCODER | changes).pooling
    assert pooling == PoolingSpec(task="score", width=1, take="cls", head="tanh", pairs="tokenizer", raw=raw)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"pad_token_id": 0}, "pad_token_id 0"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"id2label": {"0": "a", "1": "b"}}, "a classifier of 2 labels"),
        ({"sbert_ce_default_activation_function": "torch.nn.Tanh"}, "activation 'Tanh' of a score"),
    ],
)
def test_encoders_that_are_refused(tmp_path, changes, reason):
    with pytest.raises(ModelError, match=reason):
        encoder(tmp_path, CROSS_ENCODER | changes)


# --- --task -----------------------------------------------------------------------------------------------------------


def test_a_chat_model_that_embeds():
    source = ModelSource(GOLDENS / "qwen3", "embed")
    spec = load_model(source, dtype=torch.float32).spec
    assert spec.pooling == PoolingSpec(task="embed", width=spec.hidden, normalize=True, shorter=())


def test_an_older_folder_of_the_reranker(tmp_path):
    folder = shutil.copytree(GOLDENS / "qwen3_reranker", tmp_path / "model")
    (folder / "modules.json").unlink()
    assert read_model_config(folder).pooling is None
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"yes": 93, "no": 21}}}))
    pooling = read_model_config(ModelSource(folder, "score")).pooling
    assert pooling == PoolingSpec(task="score", width=1, head="linear", tokens=(93, 21), pairs=PAIRS["qwen3"])


SPELT = {
    "added_tokens": [{"id": 7, "content": "<yes>"}],
    "model": {"vocab": {"yes": 93, "no": 21}},
}


@pytest.mark.parametrize(
    ("tokens", "ids"),
    [(("93", "21"), (93, 21)), (("yes", "no"), (93, 21)), (("<yes>", "21"), (7, 21)), (("no", "yes"), (21, 93))],
)
@pytest.mark.parametrize("modules", [True, False])
def test_score_tokens(tmp_path, tokens, ids, modules):
    folder = shutil.copytree(GOLDENS / "qwen3_reranker", tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps(SPELT))
    if not modules:
        (folder / "modules.json").unlink()
    pooling = read_model_config(ModelSource(folder, score_tokens=tokens)).pooling
    assert pooling == PoolingSpec(task="score", width=1, head="linear", tokens=ids, pairs=PAIRS["qwen3"])


def test_score_tokens_of_a_unigram_model_of_another_family(tmp_path):
    folder = shutil.copytree(GOLDENS / "llama", tmp_path / "model")
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": [["<unk>", 0], ["\u2581no", 1], ["yes", 1]]}})
    )
    pooling = read_model_config(ModelSource(folder, "score", ("yes", "\u2581no"))).pooling
    assert pooling == PoolingSpec(task="score", width=1, head="linear", tokens=(2, 1))  # it scores single texts


@pytest.mark.parametrize(
    ("name", "task", "tokens", "reason"),
    [
        ("qwen3", "auto", ("yes", "no"), "tokenizer.json"),
        ("qwen3", "auto", ("5", "5"), "two different ids below 256"),
        ("qwen3", "auto", ("5", "256"), "two different ids below 256"),
        ("qwen3", "embed", ("5", "6"), "--task embed: by --score-tokens the model is one for the task score"),
        ("qwen3_embedding", "auto", ("5", "6"), "--score-tokens: by its files this model has no head for tokens"),
        ("gemma2", "auto", ("5", "6"), "a bias or a soft cap is not supported"),
        ("bge_m3", "auto", ("5", "6"), "--score-tokens: by its files this model has no head for tokens"),
    ],
)
def test_score_tokens_that_are_refused(name, task, tokens, reason):
    with pytest.raises(ModelError, match=reason):
        read_model_config(ModelSource(GOLDENS / name, task, tokens))


@pytest.mark.parametrize("name", ["minicpm", "baichuan2_7b", "qwen3"])
def test_the_score_is_the_difference_of_two_logits(name):
    """MiniCPM scales its logits, Baichuan 2 normalises its head."""
    whole = load_model(GOLDENS / name, dtype=torch.float32)
    judge = load_model(ModelSource(GOLDENS / name, score_tokens=("93", "21")), dtype=torch.float32)
    hidden = torch.randn(3, whole.spec.hidden, generator=torch.Generator().manual_seed(0))
    logits = whole.logits(hidden)
    assert torch.allclose(judge.pool(hidden)[:, 0], logits[:, 93] - logits[:, 21], atol=1e-5)


def test_a_word_that_is_no_token(tmp_path):
    folder = shutil.copytree(GOLDENS / "qwen3", tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps(SPELT))
    with pytest.raises(ModelError, match="has no token 'Yes'; give its id"):
        read_model_config(ModelSource(folder, score_tokens=("Yes", "no")))


@pytest.mark.parametrize(
    ("name", "task", "reason"),
    [
        ("qwen3_reranker", "embed", "--task embed: by its files the model is one for the task score"),
        ("bge_m3", "score", "--task score: by its files the model is one for the task embed"),
        ("llama", "score", "models of the family llama are no rerankers"),
        ("qwen3", "score", "tokenizer.json"),
    ],
)
def test_tasks_that_a_model_does_not_do(name, task, reason):
    with pytest.raises(ModelError, match=reason):
        read_model_config(ModelSource(GOLDENS / name, task))
