"""Sequences with draft tokens, through scheduler and executor: ids and logprobs are those without, to the last bit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from lightllm_mp.engine.executor import Executor
from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import Sampling, Terms, Tokenized, Tokens
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.scheduler.scheduler import Scheduler
from tests.engine.test_golden_steps import Run
from tests.engine.tiny_model import TinyModel

SAMPLED = Sampling(
    seed=3,
    temperature=1.3,
    top_k=40,
    top_p=0.95,
    min_p=0.001,
    presence_penalty=0.3,
    frequency_penalty=0.4,
    repetition_penalty=1.2,
    penalize_prompt=True,
    min_new_tokens=9,
    ignore_eos=True,
    stop_ids=np.arange(40, dtype="<i4").tobytes(),
    bias_ids=np.array([50, 60], "<i4").tobytes(),
    bias_values=np.array([3.0, -2.0], "<f4").tobytes(),
    top_logprobs=2,
)
RULES = {
    "drawn": SAMPLED,
    "few ids": Sampling(seed=5, temperature=2.0, allowed_ids=np.arange(70, 90, dtype="<i4").tobytes()),
    "penalised": Sampling(seed=0, frequency_penalty=1.5, repetition_penalty=1.5, ignore_eos=True),
    "hot": Sampling(seed=8, temperature=1.0, top_p=0.9, prompt_logprobs=1),
}


def draft_from(run: Run, answers: dict[int, list[int]], right: float) -> None:
    """Drafts are the `answers` of an earlier run, each id with probability `right`, else the one after it."""
    scheduler, random = run.scheduler, np.random.default_rng(4)

    def propose(row: int, most: int) -> Ints:
        sequence = scheduler._rows.sequences[row]
        assert sequence is not None
        known = scheduler._rows.known(row) - sequence.prompt_tokens
        ids = np.array(answers[sequence.rid][known : known + max(most, 0)], np.int32)
        return np.where(random.random(len(ids)) < right, ids, ids // 2).astype(np.int32)

    scheduler._drafts._propose = propose  # type: ignore[method-assign]
    stop_the_clock(scheduler)


def stop_the_clock(scheduler: Scheduler) -> None:
    """The depth of drafts shall not depend on how busy this machine is."""
    scheduler._drafts._times.add = lambda tokens, seconds: None  # type: ignore[method-assign]


def both(folder: str, sampling: Sampling | None = None, **changes: Any) -> tuple[Run, Run]:
    """The golden prompts, without and with drafts."""
    runs: list[Run] = []
    for most in (0, 5):
        run = Run(folder, draft_tokens=most, **changes)
        if runs:
            draft_from(run, runs[0].ids, right=0.8)
        for number in range(len(run.golden)):
            run.ask(number, **({} if sampling is None else {"sampling": sampling}))
        runs.append(run.work())
    without, drafted = runs
    assert drafted.ids == without.ids
    assert drafted.scheduler.gauges()["accepted_tokens"] > 50
    return without, drafted


@pytest.mark.parametrize("folder", ["qwen", "qwen3_moe", "gemma3", "gpt_oss", "deepseek_v2", "bloom", "llama_ct_w4a16"])
@pytest.mark.parametrize("depth", [0, 1])
def test_greedy_answers_are_the_reference_s(folder: str, depth: int) -> None:
    """Windows, sinks, latent attention, linear biases, experts, length classes."""
    without, drafted = both(folder, depth=depth)
    drafted.check()
    if folder != "deepseek_v2":  # torch computes the attention of heads as small as its
        assert drafted.logprobs == without.logprobs


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_sampled_answers_are_those_without(rules: Sampling) -> None:
    """Penalties count draft tokens at the positions behind them."""
    without, drafted = both("qwen", rules)
    assert drafted.logprobs == without.logprobs


def test_beside_prompts_and_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    without, drafted = both("qwen3_moe", kv_tokens=200, step_tokens=20)
    drafted.check()
    assert drafted.logprobs == without.logprobs
    assert drafted.scheduler.gauges()["preemptions"] > 0


def test_prompt_look_up_of_what_is_said_again() -> None:
    """Without a mock: a model that says the same again and again."""
    answers = []
    for most in (0, 6):
        ids, gauges = generate(TinyModel(), [[3, 4, 5, 6]], Sampling(seed=0, max_new_tokens=50, ignore_eos=True), most)
        answers.append(ids)
    assert answers[0] == answers[1]
    assert gauges["accepted_tokens"] > 10
    assert gauges["steps"] < 45


def test_the_distribution_of_a_drafted_token_is_the_model_s() -> None:
    """Chi-square over 4,000 seeds, whatever is drafted: the likeliest id, and an unlikely one."""
    model, prompt, count = TinyModel(vocab=8), [3, 1], 4000
    for draft in (np.array([2, 2], np.int32), np.array([5, 1], np.int32)):
        ids, gauges = generate(
            model, [prompt] * count, Sampling(seed=0, temperature=6.0, max_new_tokens=3, ignore_eos=True), 2, draft
        )
        assert gauges["accepted_tokens"] > 100
        pairs = Counter((first, second) for first, second, _ in ids.values())
        expected = {}
        start = (model.whole(prompt)[-1] / 6.0).softmax(-1)
        for first in range(8):
            after = (model.whole([*prompt, first])[-1] / 6.0).softmax(-1)
            expected |= {(first, second): count * float(start[first] * after[second]) for second in range(8)}
        chi = sum((pairs[pair] - mean) ** 2 / mean for pair, mean in expected.items() if mean > 5)
        cells = sum(mean > 5 for mean in expected.values())
        assert cells > 30
        assert chi < cells + 4 * (2 * cells) ** 0.5, (chi, cells)


def generate(
    model: TinyModel, prompts: list[list[int]], sampling: Sampling, most: int, draft: Ints | None = None
) -> tuple[dict[int, list[int]], dict[str, float]]:
    executor = Executor(model, kv_tokens=600, rows=60, max_context=64, step_tokens=240)
    limits = EngineLimits(600, 60, 64, 50, 240, model.spec.vocab, draft_tokens=most, prompt_cache=False)
    scheduler = Scheduler(limits)
    stop_the_clock(scheduler)
    if draft is not None:
        scheduler._drafts._propose = lambda row, most: draft[:most]  # type: ignore[method-assign]
        every = lambda decoding, beside_prompts: [(index, most) for index in range(len(decoding))]  # noqa: E731
        scheduler._drafts._wanted = every  # type: ignore[method-assign]
    for rid, ids in enumerate(prompts):
        terms = Terms(Sampling(**{**{n: getattr(sampling, n) for n in sampling.__struct_fields__}, "seed": rid}))
        scheduler.add(Tokenized(rid, terms, np.array(ids, "<i4").tobytes(), len(ids)))
    found: dict[int, list[int]] = {}
    while (plan := scheduler.plan()) is not None:
        scheduler.done(executor.run(plan))
        for event in scheduler.take_events():
            if isinstance(event, Tokens):
                columns = np.frombuffer(event.rids, "<i8").tolist(), np.frombuffer(event.ids, "<i4").tolist()
                for rid, token in zip(*columns, strict=True):
                    found.setdefault(rid, []).append(token)
    scheduler.check_integrity()
    return found, scheduler.gauges()
