"""The offline API on the tiny reference checkpoints: for given token ids it returns exactly the reference's ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from lightllm_mp import Config, Engine
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from lightllm_mp.errors import InvalidRequest, PromptTooLong, StartupError
from lightllm_mp.offline import EngineEnded
from tests.paths import GOLDENS


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_reference_ids_in_one_batch(name: str) -> None:
    folder = GOLDENS / name
    tensors = load_file(folder / "golden.safetensors")
    count = len(json.loads((folder / "golden.json").read_text())["prompts"])
    prompts = [tensors[f"p{i}.input_ids"].tolist() for i in range(count)]
    config = Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32"), engine=EngineConfig(max_total_token_num=2000)
    )
    with Engine(config) as engine:
        for _ in range(2):  # the second pass reads the prefix cache
            answers = engine.generate(prompts, max_new_tokens=24, ignore_eos=True)
            for i, answer in enumerate(answers):
                assert answer.token_ids == tensors[f"p{i}.greedy_ids"].tolist()
                assert answer.logprobs == pytest.approx(tensors[f"p{i}.greedy_logprobs"].tolist(), abs=5e-4)
                assert answer.finish_reason == "length"
        assert max(answer.cached_tokens for answer in answers) > 0
        streamed = [event.id for event in engine.stream(prompts[0], max_new_tokens=24, ignore_eos=True)]
        assert streamed == answers[0].token_ids
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            engine.generate("some text")
        with pytest.raises(PromptTooLong):
            engine.generate([[1] * 5000])
        # One greedy and one seeded prompt are repeated among others.
        many = [prompts[i % 2 * (i % count)] for i in range(400)]
        for rules in ({}, {"do_sample": True, "temperature": 1.0, "seed": 7}):
            found = engine.generate(many, max_new_tokens=5, ignore_eos=True, **rules)
            assert len({tuple(answer.token_ids) for answer in found[::2]}) == 1
    with pytest.raises(EngineEnded, match="closed"):
        engine.generate([[1]])


def test_scores_of_a_reward_model() -> None:
    folder = GOLDENS / "internlm2_reward"
    golden = json.loads((folder / "golden.json").read_text())["prompts"]
    config = Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32"), engine=EngineConfig(max_total_token_num=2000)
    )
    with Engine(config) as engine:
        scores = engine.score([prompt["input_ids"] for prompt in golden])
        assert scores == pytest.approx([prompt["score"] for prompt in golden], abs=5e-4)
        with pytest.raises(InvalidRequest, match="reward model"):
            engine.generate([[5, 6]])


def test_embeddings() -> None:
    folder = GOLDENS / "qwen3_embedding"
    tensors = load_file(folder / "golden.safetensors")
    prompts = [tensors[f"p{i}.input_ids"].tolist() for i in range(6)]
    config = Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32"), engine=EngineConfig(max_total_token_num=2000)
    )
    with Engine(config) as engine:
        for dimensions, name in ((None, "embedding"), (32, "embedding_half"), (64, "embedding")):
            rows = engine.embed(prompts * 50, dimensions=dimensions)
            assert len(rows) == 300
            for i, row in enumerate(rows):
                assert row.tolist() == pytest.approx(tensors[f"p{i % 6}.{name}"].tolist(), abs=5e-4)
        with pytest.raises(InvalidRequest, match="between 1 and 64"):
            engine.embed(prompts, dimensions=65)
        with pytest.raises(InvalidRequest, match="an embedding model: it answers /v1/embeddings"):
            engine.generate(prompts)
        with pytest.raises(InvalidRequest, match="needs a reward model, this one gives embeddings"):
            engine.score(prompts)


def test_a_checkpoint_that_cannot_be_served_is_one_clear_line(tmp_path: Path) -> None:
    for file in (GOLDENS / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StartupError, match=r"model\.safetensors"):
        Engine(model_dir=str(tmp_path))


def test_too_little_shared_memory_is_one_error_and_leaves_nothing() -> None:
    config = Config(model=ModelConfig(model_dir=str(GOLDENS / "llama")), http=HttpConfig(max_body_bytes=10**13))
    for _ in range(2):
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(StartupError, match="bytes are left"):
            Engine(config)
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_engine_that_gives_up_ends_the_calls_that_wait() -> None:
    config = Config(
        model=ModelConfig(model_dir=str(GOLDENS / "llama")),
        engine=EngineConfig(max_total_token_num=2000),
        supervisor=SupervisorConfig(max_restarts=0, log_level="error"),
    )
    with Engine(config) as engine:
        events = engine.stream([1, 2, 3], max_new_tokens=200, ignore_eos=True)
        next(events)
        engine._thread.supervisor.kill("router")
        with pytest.raises(EngineEnded, match="restart budget"):
            list(events)


def test_a_chat_goes_through_the_models_own_template(default_model: Path) -> None:
    config = Config(engine=EngineConfig(max_total_token_num=2000))
    with Engine(config) as engine:
        answer = engine.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=40)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
