"""The sampler for GPUs against the one for CPUs and a float64 reference: on a GPU if there is one, else interpreted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as changed

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from lightllm_mp.engine.sampling.cuda_sampler import CudaSampler
from lightllm_mp.engine.sampling.noise import id_words, log_exponential, row_keys
from lightllm_mp.engine.sampling.rules import RuleTable
from lightllm_mp.engine.sampling.torch_sampler import Choice
from lightllm_mp.kernels.triton.sampling import sampler, truncation
from lightllm_mp.kernels.triton.sampling.noise import log_exponential as noise_on_device
from lightllm_mp.kernels.triton.sampling.noise import noise_keys
from lightllm_mp.kernels.triton.sampling.rules import RULE, WORDS
from lightllm_mp.messages import Sampling
from lightllm_mp.plan import PlanBuilder, RowSetup, unpack
from tests.engine.sampling.sampling_reference import Line, adjusted, bias, choose, distribution, masks_of, only
from tests.engine.sampling.test_torch_sampler import HEATS
from tests.kernels.triton.triton_case import CUDA, triton
from tests.kernels.triton.triton_case import DEVICE as KIND

DEVICE = torch.device(KIND)
tl = triton.language
HOT = Sampling(seed=0, temperature=1.5)
ALL = Sampling(
    seed=0,
    temperature=0.8,
    top_k=25,
    top_p=0.9,
    min_p=0.02,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    repetition_penalty=1.3,
    penalize_prompt=True,
    min_new_tokens=9,
    **bias({3: 2.0, 5: -1.5, 8: -100.0, 11: 100.0, 12: -np.inf}),
)
RULES = {
    "greedy": Sampling(seed=0),
    "top_k_1": Sampling(seed=0, temperature=1.0, top_k=1),
    "temperature": Sampling(seed=0, temperature=0.7),
    "cold": Sampling(seed=0, temperature=1e-30, top_p=0.9),
    "hot": Sampling(seed=0, temperature=1e30, top_k=9),
    "top_k": replace(HOT, top_k=7),
    "top_p": replace(HOT, top_p=0.6),
    "top_p_0": replace(HOT, top_p=1e-9),
    "min_p": replace(HOT, min_p=0.15),
    "top_k_top_p": replace(HOT, top_k=20, top_p=0.7),
    "top_p_min_p": replace(HOT, top_p=0.9, min_p=0.1),
    "presence": replace(HOT, presence_penalty=1.5),
    "frequency": replace(HOT, frequency_penalty=1.2),
    "repetition": replace(HOT, repetition_penalty=2.5),
    "negative": replace(HOT, presence_penalty=-1.0, frequency_penalty=-0.7, repetition_penalty=0.6),
    "prompt": replace(HOT, presence_penalty=1.5, penalize_prompt=True),
    "greedy_penalties": Sampling(seed=0, frequency_penalty=2.0, repetition_penalty=3.0, penalize_prompt=True),
    "bias": replace(HOT, **bias({2: 3.0, 4: -2.0, 6: -np.inf})),
    "min_new": replace(HOT, min_new_tokens=9),
    "allowed": replace(HOT, **only(5, 1, 17, 20)),
    "allowed_greedy": Sampling(seed=0, frequency_penalty=2.0, repetition_penalty=3.0, **only(80, 81, 0, 99)),
    "allowed_all": replace(ALL, **only(*range(0, 100, 3))),
    "min_new_over": replace(HOT, min_new_tokens=2),
    "all": ALL,
}


def random_line(sampling: Sampling, vocab: int = 100, spread: float = 2.0, seed: int = 1) -> Line:
    """Logits of both signs, with a history in which likely ids occur often."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocab) * spread).astype(np.float32)
    best = np.argsort(-logits)[:8].tolist()
    prompt, produced = [*best[3:8], 1], [*best[:3], best[0], best[0], best[4]]
    return Line(logits, replace(sampling, seed=int(rng.integers(2**62))), prompt, produced, (best[1],))


def setups(lines: Sequence[Line], rows: Sequence[int]) -> list[RowSetup]:
    builder = PlanBuilder(0)
    for line, row in zip(lines, rows, strict=True):
        builder.setup(row, len(line.prompt), line.sampling, line.masked, guided=line.guide is not None)
    return unpack(builder.pack()).setups


class Bench:
    """A device sampler over a table of rows."""

    def __init__(self, rows: int, vocab: int, width: int = 64) -> None:
        self.tokens = torch.full((rows + 1, width), -7, dtype=torch.int32, device=DEVICE)
        self.sampler = CudaSampler(RuleTable(rows, vocab, DEVICE), self.tokens)

    def place(self, lines: Sequence[Line], rows: Sequence[int]) -> None:
        for line, row in zip(lines, rows, strict=True):
            ids = torch.tensor(line.prompt + line.produced, dtype=torch.int32)
            self.tokens[row, : len(ids)] = ids.to(DEVICE)
        self.sampler.set(setups(lines, rows))

    def choose(self, lines: Sequence[Line], rows: Sequence[int]) -> Choice:
        logits = torch.from_numpy(np.stack([line.logits for line in lines]).astype(np.float32)).to(DEVICE)
        positions = np.array([line.position for line in lines], np.int64)
        both = np.concatenate((rows, positions)).astype(np.int32)
        at = torch.from_numpy(both).to(DEVICE).split(len(lines))  # unaligned, as parts of one upload are
        with torch.inference_mode():
            return self.sampler.choose(logits, np.array(rows, np.int32), positions, at, masks_of(lines))


def on_device(lines: Sequence[Line], rows: Sequence[int] | None = None) -> Choice:
    rows = range(len(lines)) if rows is None else rows
    bench = Bench(max(rows) + 1, len(lines[0].logits))
    bench.place(lines, rows)
    return bench.choose(lines, rows)


def pairs(choice: Choice) -> list[tuple[int, float]]:
    return list(zip(choice.ids.tolist(), choice.logprobs.tolist(), strict=True))


def same(got: Choice, expected: Choice) -> None:
    assert got.ids.dtype == torch.int64
    assert got.logprobs.dtype == torch.float32
    assert got.ids.tolist() == expected.ids.tolist()
    assert got.logprobs.tolist() == pytest.approx(expected.logprobs.tolist(), abs=2e-5)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, more groups than the first look takes, whole rows in several blocks, in a small vocabulary."""
    monkeypatch.setattr(sampler, "CHUNK", 128)
    monkeypatch.setattr(truncation, "FEW", 4)
    monkeypatch.setattr(truncation, "BLOCK", 128)
    monkeypatch.setattr(truncation, "SPARE", 64)


IDS = tl.constexpr(2048)


@triton.jit
def _noise(rules, positions, out):
    line = tl.program_id(0)
    key0, key1 = noise_keys(rules + line * WORDS, tl.load(positions + line))
    at = tl.arange(0, IDS)
    tl.store(out + line * IDS + at, noise_on_device(at, key0, key1))


def test_noise() -> None:
    """Different noise words differ by far more than rounding: if the floats agree, the integers do."""
    seeds, positions = np.array([0, 3, -(2**63), 2**63 - 1]), np.array([0, 1, 5, 2**31 - 1])
    rules = np.zeros(4, RULE)
    rules["seed"] = seeds
    out = torch.empty((4, 2048), device=DEVICE)
    words = torch.from_numpy(rules.view(np.int32)).to(DEVICE)
    _noise[(4,)](words, torch.from_numpy(positions.astype(np.int32)).to(DEVICE), out)
    keys = torch.from_numpy(row_keys(seeds, positions))
    expected = log_exponential(id_words(2048, torch.device("cpu")), keys)
    assert torch.allclose(out.cpu(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("vocab", [100, 300])
@pytest.mark.usefixtures("small_blocks")
def test_every_rule_chooses_as_the_cpu_does(vocab: int) -> None:
    """With 100 ids the first look takes all groups; with 300 flat rows need a second look."""
    lines = [
        random_line(rules, vocab, spread, seed)
        for seed, rules in enumerate(RULES.values())
        for spread in ((2.0,) if vocab == 100 else ((0.3,), (8.0,))[seed % 2])
    ]
    same(on_device(lines), choose(lines))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("top_k", [3, 150])
def test_top_p_is_of_what_top_k_leaves(top_k: int) -> None:
    """Among a few ids, and over the whole row."""
    rules = replace(HOT, top_k=top_k, top_p=0.5)
    lines = [random_line(rules, 300, 0.3, seed) for seed in range(10)]
    same(on_device(lines), choose(lines))


@pytest.mark.usefixtures("small_blocks")
def test_a_row_does_not_see_the_others() -> None:
    names = ("greedy", "temperature", "top_p", "all")
    lines = [random_line(RULES[name], 300, seed=seed) for seed, name in enumerate(names)]
    together = pairs(on_device(lines))
    order = np.random.default_rng(6).permutation(len(lines)).tolist()
    assert pairs(on_device([lines[i] for i in order], order)) == [together[i] for i in order]
    for i in range(0, len(lines), 2):
        assert pairs(on_device([lines[i]])) == [together[i]]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["greedy", "temperature", "top_p", "all"])
def test_broken_logits_give_an_id_and_are_told(name: str) -> None:
    whole = [changed(random_line(RULES[name], 300), logits=np.full(300, x)) for x in (np.nan, np.inf, -np.inf)]
    one = [random_line(RULES[name], 300) for _ in range(4)]
    for line, broken in zip(one, (np.nan, -np.nan, np.inf, -np.inf), strict=True):
        line.logits[150] = broken
    choice = on_device([*whole, *one, random_line(RULES[name], 300)])
    assert choice.ids[:6].tolist() == [0] * 6
    assert choice.logprobs[:6].isnan().all()
    same(Choice(choice.ids[6:], choice.logprobs[6:]), choose([one[3], random_line(RULES[name], 300)]))


@pytest.mark.usefixtures("small_blocks")
def test_equal_logits() -> None:
    """Greedy takes the smallest id, also among zeros of either sign; limits keep all ids equal to the last kept one."""
    flat, signs = np.zeros(300, np.float32), np.where(np.arange(300) < 200, -0.0, 0.0)
    steps = np.round(np.random.default_rng(3).standard_normal(300) * 2).astype(np.float32)
    rules = [RULES[name] for name in ("greedy", "temperature", "top_k", "top_p")]
    lines = [Line(x, replace(r, seed=s), masked=(7,)) for x in (flat, signs, steps) for s, r in enumerate(rules)]
    same(on_device(lines), choose(lines))
    assert on_device(lines[:1]).ids.tolist() == on_device(lines[4:5]).ids.tolist() == [0]


def test_banned_ids() -> None:
    everything = bias(dict.fromkeys(range(100), -np.inf))
    but_one = bias({i: -np.inf for i in range(100) if i != 20})
    names = ("greedy", "temperature", "top_k", "top_p", "all")
    rules = [replace(RULES[name], **ban) for ban in (everything, but_one) for name in names]
    assert on_device([random_line(r) for r in rules]).ids.tolist() == [0] * 5 + [20] * 5


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    """A prompt has placeholder ids of images, a bias may name any id, and ids that are named twice count twice."""
    rules = replace(ALL, temperature=0.0, presence_penalty=50.0, **bias({100: 9.0, -1: 9.0, 2**31 - 1: 9.0}))
    line = random_line(rules)
    line.masked, line.prompt = (100, 1000), [100, 2**31 - 1, -3, *line.prompt]
    twice = random_line(
        replace(HOT, bias_ids=np.array([4, 9, 4], "<i4").tobytes(), bias_values=np.ones(3, "<f4").tobytes())
    )
    same(on_device([line, twice]), choose([line, twice]))


def test_a_long_history() -> None:
    rng = np.random.default_rng(8)
    rules = Sampling(seed=0, frequency_penalty=0.01, presence_penalty=0.5, repetition_penalty=1.2)
    line = random_line(rules)
    line.prompt, line.produced = [5], rng.integers(0, 99, 2500).tolist()
    bench = Bench(1, 100, width=3000)
    bench.place([line], [0])
    for _ in range(2):
        assert int(bench.choose([line], [0]).ids) == int(adjusted(line).argmax())
    assert not bench.sampler._counts.any()


def test_alternatives() -> None:
    counts = [0, 3, 1, 0, 20, 3]
    lines = [random_line(replace(ALL, top_logprobs=n), seed=i) for i, n in enumerate(counts)]
    found = {}
    for at, (ids, logprobs) in on_device(lines).top:
        found |= dict(zip(at.tolist(), zip(ids.tolist(), logprobs.tolist(), strict=True), strict=True))
    assert sorted(found) == [i for i, n in enumerate(counts) if n]
    for at, (ids, logprobs) in choose(lines).top:
        for line, best, scores in zip(at.tolist(), ids.tolist(), logprobs.tolist(), strict=True):
            assert found[line][0] == best
            assert found[line][1] == pytest.approx(scores, abs=2e-5)


def test_rows_change_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many setups, so that biases get new places; the last of two setups of a row counts."""
    monkeypatch.setattr("lightllm_mp.engine.sampling.cuda_sampler.FIRST_TAIL_WORDS", 16)
    bench, lines = Bench(4, 100), {}
    rng = np.random.default_rng(2)
    for step in range(8):
        rows = rng.permutation(4)[: rng.integers(1, 4)].tolist()
        fresh = [
            random_line(
                replace(HOT, **bias({int(i): 3.0 for i in rng.permutation(100)[: 2 * step]})), seed=9 * step + row
            )
            for row in rows
        ]
        bench.place([random_line(ALL), *fresh], [rows[0], *rows])
        lines |= dict(zip(rows, fresh, strict=True))
        same(bench.choose(list(lines.values()), list(lines)), choose(list(lines.values())))
    bench.sampler.clear()
    bench.sampler.set([])
    expected = [int(line.logits.argmax()) for line in lines.values()]
    assert bench.choose(list(lines.values()), list(lines)).ids.tolist() == expected


def test_a_row_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="row 4 of 2"):
        Bench(2, 100).sampler.set(setups([random_line(ALL)], [4]))


@pytest.mark.parametrize("name", ["temperature", "all"] if CUDA else ["temperature"])
def test_draws_follow_the_distribution(name: str) -> None:
    """Chi-square over the more likely ids and the others together."""
    draws = 4000 if CUDA else 60
    line = random_line(RULES[name], vocab=24)
    expected = distribution(line) * draws
    ids = on_device([changed(line, sampling=replace(line.sampling, seed=seed)) for seed in range(draws)]).ids
    found = np.bincount(ids.cpu().numpy(), minlength=24)
    assert not found[expected == 0].any()
    rare = expected < 5
    bins = [(found[~rare], expected[~rare]), (found[rare].sum(keepdims=True), expected[rare].sum(keepdims=True) + 1e-9)]
    statistic = sum(((f - e) ** 2 / np.maximum(e, 1.0)).sum() for f, e in bins)
    freedom = int((~rare).sum())
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("vocab", [1000, 32000, 50257, 128256])
def test_large_vocabularies(vocab: int) -> None:
    names = list(RULES)
    lines = [random_line(RULES[names[i % len(names)]], vocab, (0.05, 1.0, 3.0)[i % 3], i) for i in range(256)]
    choice, expected = on_device(lines), choose(lines)
    equal = choice.ids.cpu() == expected.ids
    assert equal.float().mean() > 0.99, "rounding may decide one draw in thousands, not more"
    assert torch.allclose(choice.logprobs.cpu()[equal], expected.logprobs[equal], atol=3e-5)
    alone = [pairs(on_device([lines[i]]))[0] for i in range(0, 256, 16)]
    assert alone == pairs(choice)[::16]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_nothing_waits_for_the_device() -> None:
    lines = [random_line(replace(r, top_logprobs=i % 3), 32000, seed=i) for i, r in enumerate(RULES.values())]
    rows = list(range(len(lines)))
    bench = Bench(len(lines), 32000)
    bench.place(lines, rows)
    bench.choose(lines, rows)
    fresh, positions = setups(lines, rows), np.array([line.position for line in lines], np.int64)
    logits = torch.from_numpy(np.stack([line.logits for line in lines])).cuda()
    at = torch.tensor(rows, dtype=torch.int32).cuda(), torch.from_numpy(positions.astype(np.int32)).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bench.sampler.set(fresh)
        bench.sampler.choose(logits, np.array(rows, np.int32), positions, at)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("heat", HEATS)
def test_only_allowed_ids_are_sampled_under_every_rule(heat: str) -> None:
    """Beside rows without a mask, which must not change."""
    rules = Sampling(seed=0, **HEATS[heat], **only(9, 7, 240))
    lines = [random_line(replace(rules, seed=seed), 300, 5.0, seed) for seed in range(6)]
    lines = [changed(line, prompt=[9, 7, 240, 3], masked=(7,)) for line in lines]
    plain = random_line(RULES["all"], 300)
    choice = on_device([*lines, plain])
    assert set(choice.ids[:-1].tolist()) <= {9, 7, 240}
    same(choice, choose([*lines, plain]))


def test_a_mask_ends_with_its_sequence() -> None:
    bench = Bench(1, 100)
    masked, free = random_line(Sampling(seed=0, **only(4, 6))), random_line(Sampling(seed=0))
    for line in (masked, free, masked):
        bench.place([line], [0])
        assert int(bench.choose([line], [0]).ids) == int(adjusted(line).argmax())


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("heat", HEATS)
def test_only_allowed_ids_of_a_large_vocabulary(heat: str) -> None:
    allowed = (9, 7, 240, 70_000, 128_255)
    rules = Sampling(seed=0, **HEATS[heat], **only(*allowed))
    lines = [random_line(replace(rules, seed=seed), 128256, 5.0, seed) for seed in range(128)]
    choice, expected = on_device(lines), choose(lines)
    assert set(choice.ids.tolist()) <= set(allowed)
    assert (choice.ids.cpu() == expected.ids).float().mean() > 0.99
