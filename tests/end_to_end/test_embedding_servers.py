"""Servers of embedding and score models: golden rows from token ids, and texts through tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lightllm_mp import Config, Engine, Server
from lightllm_mp.config import EngineConfig, ModelConfig
from lightllm_mp.models.families.common.pooling import PAIRS
from tests.end_to_end.served import get, post
from tests.end_to_end.test_golden_servers import crash_during, prompts, refused, serving
from tests.models.families.test_transformers_encoders import SIZES, saved
from tests.paths import GOLDENS

TOLERANCE = 5e-4
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, "what", "is", "a", "panda", "it", "bear", "lives", "in", "china", "hi", "the")
QUERY, DOCUMENTS = "what is a panda", ["hi", "the panda is a bear, it lives in China", "", "Paris: a capital"]


def golden_rows(folder: str) -> list[list[float]]:
    tensors = load_file(GOLDENS / folder / "golden.safetensors")
    return [tensors[f"p{i}.embedding"].tolist() for i in range(len(prompts(folder)))]


def check_rows(server: Server, folder: str, copies: int = 1) -> None:
    inputs = [prompt["input_ids"] for prompt in prompts(folder)] * copies
    answer = post(server, "/v1/embeddings", {"input": inputs})
    for entry, wanted in zip(answer["data"], golden_rows(folder) * copies, strict=True):
        assert entry["embedding"] == pytest.approx(wanted, abs=TOLERANCE)
    assert answer["usage"]["total_tokens"] == sum(map(len, inputs))


@pytest.fixture(scope="module", params=["qwen3_embedding", "bge_m3"])
def embedder(request: pytest.FixtureRequest) -> Iterator[tuple[Server, str]]:
    with serving(GOLDENS / request.param) as server:
        yield server, request.param


def test_golden_rows(embedder: tuple[Server, str]) -> None:
    server, folder = embedder
    check_rows(server, folder)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check_rows, server, folder, 40) for _ in range(4)]:
            done.result()
    assert get(server, "/token_load")["current_load"] == 0


def test_a_crash_changes_no_bit(embedder: tuple[Server, str]) -> None:
    server, folder = embedder
    body = {"input": [prompt["input_ids"] for prompt in prompts(folder)] * 30, "encoding_format": "base64"}
    before = post(server, "/v1/embeddings", body)
    with crash_during(server):
        assert post(server, "/v1/embeddings", body) == before


def test_what_an_embedding_model_refuses(embedder: tuple[Server, str]) -> None:
    server, folder = embedder
    assert "an embedding model: it answers /v1/embeddings" in refused(server, "/generate", {"inputs": [5, 6]})
    assert "this one gives embeddings" in refused(server, "/v1/rerank", {"query": "a", "documents": ["b"]})
    assert "send token ids" in refused(server, "/v1/embeddings", {"input": "a"})
    if folder == "bge_m3":  # as many tokens as the encoder has positions
        whole = {"input": [[5] * 128]}
        assert len(post(server, "/v1/embeddings", whole)["data"]) == 1
        assert "longest possible" in refused(server, "/v1/embeddings", {"input": [[5] * 129]})
        assert "Matryoshka" in refused(server, "/v1/embeddings", {"input": [[5]], "dimensions": 8})


def wordpiece() -> Tokenizer:
    """The form of BERT: [CLS] query [SEP] document [SEP], in segments 0 and 1."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend


@pytest.mark.slow
def test_a_cross_encoder_ranks_texts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SIZES, num_labels=1)
    theirs, backend = saved(transformers.BertForSequenceClassification(config), tmp_path), wordpiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    wanted = []
    for document in DOCUMENTS:
        found = backend.encode(QUERY, document)
        with torch.inference_mode():
            ids, types = torch.tensor([found.ids]), torch.tensor([found.type_ids])
            wanted.append(theirs(ids, token_type_ids=types).logits[0, 0].sigmoid().item())
    with serving(tmp_path) as server:
        answer = post(server, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
        scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
        assert [scores[i] for i in range(len(DOCUMENTS))] == pytest.approx(wanted, abs=TOLERANCE)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        answer = post(server, "/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS})
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(wanted, abs=TOLERANCE)
        alone = post(server, "/get_score", {"chat": QUERY})["score"]
        with torch.inference_mode():
            raw = theirs(torch.tensor([backend.encode(QUERY).ids])).logits[0, 0].item()
        assert alone == pytest.approx(raw, abs=TOLERANCE)
        assert "longest possible" in refused(server, "/v1/rerank", {"query": QUERY, "documents": ["x" * 5000]})
    settings = Config(
        model=ModelConfig(model_dir=str(tmp_path), data_type="float32"), engine=EngineConfig(max_total_token_num=2000)
    )
    with Engine(settings) as engine:
        assert engine.rerank(QUERY, DOCUMENTS) == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.slow
def test_qwen3_reranker_judges_texts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copytree(GOLDENS / "qwen3_reranker", tmp_path, dirs_exist_ok=True)
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    wanted = []
    for document in DOCUMENTS:
        text = PAIRS["qwen3"].replace("{query}", QUERY).replace("{document}", document)
        with torch.inference_mode():
            logits = theirs(torch.tensor([backend.encode(text).ids])).logits[0, -1]
        wanted.append(logits[[93, 21]].softmax(0)[0].item())
    (tmp_path / "1_LogitScore/config.json").write_text(json.dumps({"true_token_id": 1, "false_token_id": 2}))
    with serving(tmp_path, score_tokens=("93", "21")) as server:  # the operator's setting overrides the file
        answer = post(server, "/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS})
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(wanted, abs=TOLERANCE)
        strange = {"text_1": "{document} {query}", "text_2": "{query}"}  # braces in a client's text have no meaning
        assert post(server, "/v1/score", strange)["usage"]["total_tokens"] > 300
        (tmp_path / "golden.json").read_text()
        ids = json.loads((tmp_path / "golden.json").read_text())["prompts"][2]
        expected = load_file(tmp_path / "golden.safetensors")["p2.score"]
        alone = post(server, "/get_score", {"ids": ids["input_ids"]})["score"]
        assert alone == pytest.approx(expected.item(), abs=TOLERANCE)
