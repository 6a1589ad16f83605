"""Golden checkpoints through scheduler and executor: a sequence's ids and logprobs are always those of the reference.
Qwen's depend on the length of the prompt."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.numpy import load_file

from lightllm_mp.engine.build import keeps_prefixes, longest_prompt, pooled_facts
from lightllm_mp.engine.executor import Executor
from lightllm_mp.engine.window_sizing import window_of_all
from lightllm_mp.facts import EngineLimits, StateFacts
from lightllm_mp.messages import Open, Pooled, Sampling, Terms, Tokenized, Tokens
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.length_class import class_bounds
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.scheduler.scheduler import Scheduler
from tests.paths import GOLDENS

TOLERANCE = 5e-4
NEW = 24
GREEDY = Sampling(seed=0, ignore_eos=True, min_new_tokens=0)


@cache
def model(folder: str, device: str = "cpu") -> Decoder:
    return load_model(GOLDENS / folder, dtype=torch.float32, device=device)


@cache
def golden(folder: str) -> list[dict[str, Any]]:
    """Prompts as golden.json has them, with `greedy_logprobs`, or with `row` (embeddings and scores)."""
    prompts = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]
    data = load_file(GOLDENS / folder / "golden.safetensors")
    names = {
        "qwen3_embedding": "embedding",
        "bge_m3": "embedding",
        "qwen3_reranker": "yes_no_logits",
        "internlm2_reward": "score",
    }
    found = [{**p, "greedy_logprobs": data.get(f"p{i}.greedy_logprobs")} for i, p in enumerate(prompts)]
    if folder in names:
        found = [{**p, "row": data[f"p{i}.{names[folder]}"].reshape(-1)} for i, p in enumerate(found)]
    if folder == "qwen3_reranker":
        found = [{**p, "row": p["row"][:1] - p["row"][1:]} for p in found]
    return found


class Run:
    """Prompt number i is sequence 100 + i; repeated, it is 200 + i, 300 + i, .."""

    def __init__(self, folder: str, depth: int = 0, **changes: Any) -> None:
        self.golden, self.depth, spec = golden(folder), depth, model(folder).spec
        kv_tokens, step_tokens = changes.get("kv_tokens", 2000), changes.get("step_tokens", 64)
        context, device = changes.get("context", 400), changes.get("device", "cpu")
        states = changes.get("states", StateFacts(checkpoints=50, grain=1))
        window_tokens = changes.get("window_tokens", 0)
        self.executor = Executor(
            model(folder, device),
            kv_tokens=kv_tokens,
            rows=16,
            max_context=context,
            step_tokens=step_tokens,
            device=device,
            state_checkpoints=states.checkpoints,
            window_tokens=window_tokens,
        )
        for part in (part for layer in self.executor.kv.layers.values() for part in layer if part is not None):
            part[:-1].fill_(float("nan"))  # memory that was not written must not be read
        if (pool := self.executor.kv.states) is not None:
            pool.recurrent.fill_(float("nan"))
        self.scheduler = Scheduler(
            EngineLimits(
                kv_tokens=kv_tokens,
                rows=16,
                max_context=context,
                max_input=longest_prompt(spec, context, None),
                prompt_cache=keeps_prefixes(spec),
                step_tokens=step_tokens,
                eos_ids=(),
                vocab_size=spec.vocab,
                class_bounds=class_bounds(spec),
                pooled=pooled_facts(spec, step_tokens),
                window=changes.get("window", window_of_all(spec)),
                window_tokens=window_tokens,
                run_ahead=depth,
                whole_images=spec.image_span > 0,
                states=states if spec.delta is not None else None,
                draft_tokens=changes.get("draft_tokens", 0),
            )
        )
        self.ids: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.cached: dict[int, int] = {}
        self.rows: dict[int, np.ndarray] = {}

    def ask(self, number: int, *, turn: int = 1, emitted: int = 0, sampling: Sampling = GREEDY) -> None:
        prompt = self.golden[number]
        ids = [*prompt["input_ids"], *prompt.get("greedy_ids", ())[:emitted]]
        new = NEW if "greedy_ids" in prompt else 0
        sampling = replace(sampling, max_new_tokens=new)
        column = np.array(ids, "<i4").tobytes()
        self.scheduler.add(Tokenized(turn * 100 + number, Terms(sampling), column, prompt["length"]))

    def ask_all(self, turn: int = 1, emitted: int = 0) -> None:
        for number in range(len(self.golden)):
            self.ask(number, turn=turn, emitted=emitted)

    def work(self) -> Run:
        while (plan := self.scheduler.plan()) is not None or self.executor.pending:
            if plan is not None:
                self.executor.submit(plan)
            if plan is None or self.executor.pending > self.depth:
                self.scheduler.done(self.executor.collect())
            self._listen()
        self.scheduler.check_integrity()
        return self

    def _listen(self) -> None:
        for event in self.scheduler.take_events():
            if isinstance(event, Open):
                self.cached[event.rid] = event.cached_tokens
            elif isinstance(event, Pooled):
                self.rows[event.rid] = np.frombuffer(event.row, "<f4")
            elif isinstance(event, Tokens):
                columns = (np.frombuffer(event.rids, "<i8"), np.frombuffer(event.ids, "<i4"))
                for rid, token, logprob in zip(*columns, np.frombuffer(event.logprobs, "<f4"), strict=True):
                    self.ids.setdefault(int(rid), []).append(int(token))
                    self.logprobs.setdefault(int(rid), []).append(float(logprob))

    def check(self, turn: int = 1, emitted: int = 0) -> None:
        for number, prompt in enumerate(self.golden):
            rid = turn * 100 + number
            if "row" in prompt:
                assert self.rows[rid].shape == prompt["row"].shape
                assert np.abs(self.rows[rid] - prompt["row"]).max() < TOLERANCE
                continue
            assert self.ids[rid] == prompt["greedy_ids"][emitted:], f"prompt {number}"
            assert np.abs(self.logprobs[rid] - prompt["greedy_logprobs"][emitted:]).max() < TOLERANCE


FOLDERS = pytest.mark.parametrize(
    "folder", ["qwen", "qwen3_moe", "qwen3_next", "internlm2_reward", "qwen3_embedding", "qwen3_reranker"]
)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("step_tokens", [128, 200, 400])
def test_an_encoder(depth: int, step_tokens: int) -> None:
    run = Run("bge_m3", depth, step_tokens=step_tokens, context=128)
    run.ask_all()
    run.work().check()


@FOLDERS
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_together(folder: str, depth: int, step_tokens: int) -> None:
    run = Run(folder, depth, step_tokens=step_tokens)
    run.ask_all()
    run.work().check()


@FOLDERS
def test_token_by_token(folder: str) -> None:
    run = Run(folder, step_tokens=1)
    for number in range(len(run.golden)):
        run.ask(number)
        run.work()
    run.check()


@FOLDERS
def test_after_a_prefix_hit(folder: str) -> None:
    """All prompts again in another order; each is cached except its last token."""
    run = Run(folder)
    for number in range(len(run.golden)):
        run.ask(number)
        run.work()
    run.check()
    for number in reversed(range(len(run.golden))):
        run.ask(number, turn=2)
        run.work()
    run.check(turn=2)
    assert all(run.cached[200 + i] == p["length"] - 1 for i, p in enumerate(run.golden) if "greedy_ids" in p)


@pytest.mark.parametrize("folder", ["qwen", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("depth", [0, 1])
def test_preempted(folder: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    run = Run(folder, depth, kv_tokens=300)
    run.ask_all()
    run.work().check()
    assert run.scheduler.gauges()["preemptions"] > 0


@pytest.mark.parametrize("folder", ["qwen", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("emitted", [1, 10, 23])
def test_resumed(folder: str, emitted: int) -> None:
    run = Run(folder)
    run.ask_all(emitted=emitted)
    run.work().check(emitted=emitted)


def test_a_prompt_that_goes_on_where_another_answer_ended() -> None:
    """A dialogue: prompt and answer of the first turn are the start of the second prompt, which is of another class."""
    run = Run("qwen")
    short = next(p for p in run.golden if p["length"] == 32)
    run.ask(short["index"])
    run.work()
    ids = [*short["input_ids"], *short["greedy_ids"], 7]
    fresh = Run("qwen")
    for one in (run, fresh):
        sampling = Sampling(seed=0, max_new_tokens=8, ignore_eos=True, min_new_tokens=0)
        one.scheduler.add(Tokenized(900, Terms(sampling), np.array(ids, "<i4").tobytes(), len(ids)))
        one.work()
    assert run.ids[900] == fresh.ids[900]
    assert run.logprobs[900] == pytest.approx(fresh.logprobs[900], abs=1e-6)
    assert run.cached[900] == 0
