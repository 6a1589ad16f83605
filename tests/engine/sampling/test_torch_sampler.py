"""Sampling draws from the documented distribution, row by row, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from lightllm_mp.engine.sampling import gumbel
from lightllm_mp.engine.sampling.logprobs import FLOOR
from lightllm_mp.messages import Sampling
from lightllm_mp.plan import PlanBuilder, unpack
from tests.engine.sampling.sampling_reference import (
    Line,
    adjusted,
    bias,
    choose,
    distribution,
    only,
    sampler_for,
    softmax,
)

CANDIDATES = gumbel.WIDTHS[0]
LARGE = 3 * CANDIDATES + 5
"""A vocabulary with more ids than the sampler looks at first."""

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
    "temperature": Sampling(seed=0, temperature=0.7),
    "hot": Sampling(seed=0, temperature=3.0),
    "top_k": Sampling(seed=0, temperature=1.0, top_k=7),
    "top_p": Sampling(seed=0, temperature=1.0, top_p=0.6),
    "top_p_hot": Sampling(seed=0, temperature=2.0, top_p=0.97),
    "top_k_top_p": Sampling(seed=0, temperature=1.5, top_k=20, top_p=0.7),
    "min_p": Sampling(seed=0, temperature=1.5, min_p=0.15),
    "top_p_min_p": Sampling(seed=0, temperature=1.5, top_p=0.9, min_p=0.15),
    "presence": Sampling(seed=0, temperature=1.0, presence_penalty=1.5),
    "frequency": Sampling(seed=0, temperature=1.0, frequency_penalty=1.2),
    "repetition": Sampling(seed=0, temperature=1.0, repetition_penalty=2.5),
    "negative": Sampling(
        seed=0, temperature=1.0, presence_penalty=-1.0, frequency_penalty=-0.7, repetition_penalty=0.6
    ),
    "prompt": Sampling(seed=0, temperature=1.0, presence_penalty=1.5, penalize_prompt=True),
    "bias": Sampling(seed=0, temperature=1.0, **bias({2: 3.0, 4: -2.0, 6: -np.inf})),
    "min_new": Sampling(seed=0, temperature=1.0, min_new_tokens=9),
    "allowed": Sampling(seed=0, temperature=1.0, **only(5, 1, 17, 20), **bias({1: 2.0, 3: 90.0})),
    "all": ALL,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads do not help with small tensors, and slow a busy machine down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_line(sampling: Sampling, vocab: int = 48, spread: float = 2.0, seed: int = 1) -> Line:
    """Logits of both signs, with a history in which likely ids occur often."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocab) * spread).astype(np.float32)
    best = np.argsort(-logits)[:8].tolist()
    return Line(
        logits, sampling, prompt=[*best[3:8], 1], produced=[*best[:3], best[0], best[0], best[4]], masked=(best[1],)
    )


def draw_many(line: Line, draws: int = 20000, batch: int = 1000) -> np.ndarray:
    """float64 [vocab]: the frequency of each id over as many seeds."""
    sampler, counts = sampler_for([line] * batch, range(batch)), np.zeros(len(line.logits))
    logits = torch.from_numpy(line.logits).expand(batch, -1)
    rows, positions = np.arange(batch, dtype=np.int32), np.full(batch, line.position)
    for first in range(0, draws, batch):
        sampler.rules.records["seed"] = np.arange(first, first + batch)
        with torch.inference_mode():
            ids = sampler.choose(logits.clone(memory_format=torch.contiguous_format), rows, positions).ids
        counts += np.bincount(ids.numpy(), minlength=len(counts))
    return counts / draws


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation."""
    return float(abs(p - q).sum() / 2)


@pytest.mark.parametrize("name", RULES)
def test_draws_follow_the_reference(name: str) -> None:
    line = random_line(RULES[name])
    expected, found = distribution(line), draw_many(line)
    assert distance(found, expected) < 0.5 * np.sqrt(2 * np.count_nonzero(expected) / (np.pi * 20000)) + 0.005
    assert not found[expected == 0].any()
    unruled = distribution(dataclasses.replace(line, sampling=Sampling(seed=0, temperature=1.0)))
    assert distance(found, unruled) > 0.05, "the rule changes nothing here, so this test shows nothing"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=0, temperature=0.3, top_p=0.9),
        Sampling(seed=0, temperature=5.0, top_p=0.9),
        Sampling(seed=0, temperature=5.0, top_k=CANDIDATES + 300),
        Sampling(seed=0, temperature=5.0, top_k=CANDIDATES + 300, top_p=0.5),
        Sampling(seed=0, temperature=3.0, top_k=40),
    ],
    ids=["candidates", "whole row", "large top-k", "large top-k, top-p", "top-k"],
)
def test_truncation_of_a_large_vocabulary(sampling: Sampling) -> None:
    """Both ways, by candidates and by the whole row, keep exactly the ids that the reference keeps."""
    line = random_line(sampling, vocab=LARGE)
    expected, found = distribution(line), draw_many(line, draws=2000, batch=500)
    assert not found[expected == 0].any()
    groups = np.argsort(-expected)[: np.count_nonzero(expected)]
    coarse = [np.array([part.sum() for part in np.array_split(p[groups], 24)]) for p in (found, expected)]
    assert distance(*coarse) < 0.06
    if np.count_nonzero(expected) < 100:
        assert np.array_equal(found > 0, expected > 0) or expected[(found == 0)].max() < 5e-3


def heterogeneous() -> list[Line]:
    """Rows of every kind over a large vocabulary, some of them broken."""
    rng, lines = np.random.default_rng(5), []
    plain = [Sampling(seed=0), Sampling(seed=0, top_k=1, temperature=1.0), Sampling(seed=0, top_logprobs=3)]
    for number, sampling in enumerate([*RULES.values(), *plain, Sampling(seed=0, temperature=6.0, top_p=0.99)]):
        for spread in (0.1, 2.0, 12.0):
            line = random_line(replace(sampling, seed=int(rng.integers(2**62))), LARGE, spread, seed=number)
            lines.append(line)
    broken = random_line(ALL, LARGE)
    for change in (np.nan, np.inf, -np.inf):
        logits = broken.logits.copy()
        logits[17] = change
        lines += [dataclasses.replace(broken, logits=logits, sampling=s) for s in (ALL, RULES["temperature"])]
    lines.append(dataclasses.replace(broken, logits=np.zeros(LARGE, np.float32)))
    lines.append(dataclasses.replace(broken, logits=np.zeros(LARGE, np.float32), sampling=RULES["top_p_min_p"]))
    return lines


def test_a_row_does_not_see_the_others() -> None:
    torch.set_num_threads(2)  # the number of threads makes no difference either
    lines = heterogeneous()
    together = choose(lines)
    order = np.random.default_rng(6).permutation(len(lines))
    shuffled = choose([lines[i] for i in order], rows=[int(row) for row in order])
    assert shuffled.ids.tolist() == together.ids[order].tolist()
    np.testing.assert_array_equal(shuffled.logprobs, together.logprobs[order])  # NaN equals NaN
    for i, line in enumerate(lines):
        alone = choose([line])
        assert int(alone.ids) == int(together.ids[i]), i
        np.testing.assert_array_equal(alone.logprobs, together.logprobs[i : i + 1])


@pytest.mark.parametrize("widths", [(), (8,), (8, 64), (LARGE,)])
def test_the_number_of_candidates_does_not_matter(widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = choose(heterogeneous()).ids.tolist()
    monkeypatch.setattr(gumbel, "WIDTHS", widths)
    assert choose(heterogeneous()).ids.tolist() == expected


def test_seed_and_position_decide() -> None:
    line = random_line(RULES["hot"], LARGE)
    longer = dataclasses.replace(line, produced=[*line.produced, 0])
    other = dataclasses.replace(line, sampling=replace(line.sampling, seed=1))
    draws = [int(choose([it]).ids) for it in (line, line, longer, other)]
    assert draws[0] == draws[1]
    assert len({draws[0], draws[2], draws[3]}) == 3


def test_greedy_takes_the_best_after_penalties() -> None:
    lines = [
        random_line(replace(RULES[name], temperature=0.0), seed=seed)
        for seed in range(8)
        for name in ("presence", "repetition", "frequency", "prompt", "bias", "min_new", "all")
    ]
    lines += [random_line(Sampling(seed=0), seed=3), random_line(Sampling(seed=0, temperature=2.0, top_k=1), seed=4)]
    expected = [int(adjusted(line).argmax()) for line in lines]
    assert choose(lines).ids.tolist() == expected
    assert any(want != int(line.logits.argmax()) for want, line in zip(expected, lines, strict=True))


def test_equal_logits() -> None:
    """Greedy takes the smallest id; top-k keeps all ids equal to its last one."""
    flat = np.zeros(LARGE, np.float32)
    assert int(choose([Line(flat, Sampling(seed=0))]).ids) == 0
    found = draw_many(Line(flat, Sampling(seed=0, temperature=1.0, top_k=2)), draws=400, batch=400)
    assert np.count_nonzero(found) > 300


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e-5])
def test_cold_is_greedy(temperature: float) -> None:
    rules = [
        Sampling(seed=s, temperature=temperature, top_p=p, min_p=m)
        for s in range(20)
        for p in (1, 0.9)
        for m in (0, 0.1)
    ]
    lines = [random_line(sampling, LARGE, seed=9) for sampling in rules]
    assert set(choose(lines).ids.tolist()) == {int(lines[0].logits.argmax())}


def test_very_hot_is_uniform() -> None:
    line = random_line(Sampling(seed=0, temperature=1e30))
    assert distance(draw_many(line), np.full(48, 1 / 48)) < 0.03


def test_top_p_keeps_the_best_even_at_zero() -> None:
    line = random_line(Sampling(seed=0, temperature=1.0, top_p=1e-9))
    assert int(choose([line]).ids) == int(line.logits.argmax())


@pytest.mark.parametrize(
    "rules", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.999999}, {"temperature": 1.0, "top_k": 5}]
)
@pytest.mark.parametrize("vocab", [48, LARGE])
def test_all_but_one_banned(rules: dict[str, float], vocab: int) -> None:
    ban = bias({i: -np.inf for i in range(vocab) if i != 20})
    lines = [random_line(Sampling(seed=s, **rules, **ban), vocab) for s in range(50)]
    assert set(choose(lines).ids.tolist()) == {20}


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "all"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", [slice(None), slice(5, 6)], ids=["whole row", "one logit"])
def test_broken_logits_give_an_id_and_are_told(name: str, broken: float, where: slice) -> None:
    for sampling in (RULES[name], replace(RULES[name], temperature=0.0)):
        line = random_line(sampling, LARGE)
        line.logits[where] = broken
        choice = choose([line, random_line(sampling, LARGE)])
        hopeless = not np.isfinite(softmax(line.logits.astype(np.float64))).all()
        assert int(choice.ids[0]) == 0 if hopeless else 0 <= int(choice.ids[0]) < LARGE
        assert np.isnan(float(choice.logprobs[0])) == hopeless
        assert float(choice.logprobs[1]) > FLOOR


def test_everything_banned_gives_id_zero() -> None:
    ban = bias(dict.fromkeys(range(48), -np.inf))
    rules = [Sampling(seed=0, **ban), *(replace(RULES[n], **ban) for n in ("temperature", "top_k", "top_p", "all"))]
    assert choose([random_line(sampling) for sampling in rules]).ids.tolist() == [0] * len(rules)


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    """A prompt has placeholder ids of images, and a bias may name any id."""
    sampling = Sampling(seed=0, presence_penalty=50.0, penalize_prompt=True, **bias({48: 9.0, -1: 9.0, 2**31 - 1: 9.0}))
    line = random_line(sampling)
    line.masked = (48, 1000)
    line.prompt = [48, 2**31 - 1, *line.prompt]
    clean = dataclasses.replace(line, prompt=line.prompt[2:], sampling=replace(sampling, bias_ids=b"", bias_values=b""))
    assert int(choose([line]).ids) == int(adjusted(dataclasses.replace(clean, masked=())).argmax())


def test_min_new_tokens_ends() -> None:
    line = random_line(Sampling(seed=0, min_new_tokens=6))
    best = int(line.logits.argmax())
    for produced, banned in ((5, True), (6, False), (7, False)):
        now = dataclasses.replace(line, produced=[1] * produced, masked=(best,))
        assert (int(choose([now]).ids) != best) == banned


def test_logprobs_are_of_the_untouched_logits() -> None:
    lines = [random_line(sampling, LARGE, seed=i) for i, sampling in enumerate(RULES.values())]
    choice = choose(lines)
    for line, token, logprob in zip(lines, choice.ids.tolist(), choice.logprobs.tolist(), strict=True):
        assert logprob == pytest.approx(np.log(softmax(line.logits.astype(np.float64))[token]), abs=1e-5)


def test_alternatives() -> None:
    counts = [0, 3, 1, 0, 20, 3]
    lines = [random_line(replace(ALL, top_logprobs=n), LARGE, seed=i) for i, n in enumerate(counts)]
    found = {}
    for at, (ids, logprobs) in choose(lines).top:
        found |= dict(zip(at.tolist(), zip(ids.tolist(), logprobs.tolist(), strict=True), strict=True))
    assert sorted(found) == [i for i, n in enumerate(counts) if n]
    for i, (ids, logprobs) in found.items():
        exact = np.log(softmax(lines[i].logits.astype(np.float64)))
        assert ids == np.argsort(-exact)[: counts[i]].tolist()
        assert logprobs == pytest.approx(exact[ids].tolist(), abs=1e-5)


def test_a_resumed_sequence_goes_on_the_same() -> None:
    """After an interruption the same ids are in another row, beside other sequences."""
    line = random_line(replace(ALL, penalize_prompt=False), LARGE)
    first = choose([line])
    again = choose([random_line(RULES["hot"], LARGE), line], rows=[4, 2])
    assert int(again.ids[1]) == int(first.ids)


def test_a_row_forgets_the_rules_of_its_last_sequence() -> None:
    line = random_line(replace(RULES["bias"], temperature=0.0, **bias({2: 100.0})))
    sampler = sampler_for([line], [0])
    builder = PlanBuilder(1)
    builder.setup(0, 1, Sampling(seed=0))
    for setup in unpack(builder.pack()).setups:
        sampler.rules.set(setup)
    logits = torch.from_numpy(line.logits.copy())[None]
    choice = sampler.choose(logits, np.zeros(1, np.int32), np.array([line.position]))
    assert int(choice.ids) == int(line.logits.argmax())


HEATS = {
    "greedy": {},
    "hot": {"temperature": 1000.0},
    "hot_top_k": {"temperature": 1000.0, "top_k": 5},
    "hot_top_p": {"temperature": 1000.0, "top_p": 0.99},
    "hot_min_p": {"temperature": 1000.0, "min_p": 0.5},
    "cold": {"temperature": 1e-5},
    "repetition": {"repetition_penalty": 100.0, "penalize_prompt": True},
    "penalties": {"temperature": 80.0, "presence_penalty": 100.0, "frequency_penalty": 100.0, "penalize_prompt": True},
    "pushed": {"temperature": 1.0, **bias({7: -100.0, 9: -100.0, 11: 100.0})},
}


@pytest.mark.parametrize("vocab", [48, LARGE])
@pytest.mark.parametrize("heat", HEATS)
def test_only_allowed_ids_are_sampled_under_every_rule(heat: str, vocab: int) -> None:
    """A bias of 1000 is not enough: at temperature 1000, or with a repetition penalty of 100, 40 of 40 draws differ."""
    rules = Sampling(seed=0, **HEATS[heat], **only(9, 7, 40))
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal(vocab) * 5).astype(np.float32)
    lines = [Line(logits, replace(rules, seed=seed), [9, 7, 40, 3], [9, 9, 7]) for seed in range(40)]
    lines.append(Line(logits, Sampling(seed=0)))
    ids = choose(lines).ids.tolist()
    assert set(ids[:-1]) <= {9, 7, 40}
    assert ids[-1] == int(logits.argmax())


@pytest.mark.parametrize("vocab", [48, LARGE])
@pytest.mark.parametrize("heat", HEATS)
def test_only_ids_of_the_mask_are_sampled_under_every_rule(heat: str, vocab: int) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal(vocab) * 5).astype(np.float32)
    plain = Line(logits, Sampling(seed=0, temperature=1.0))
    lines = [
        Line(logits, Sampling(seed=seed, **HEATS[heat]), [9, 7, 40, 3], [9, 9, 7], guide=(7, 9, vocab - 1))
        for seed in range(40)
    ]
    choice = choose([plain, *lines])
    assert set(choice.ids.tolist()[1:]) <= {7, 9, vocab - 1}
    assert choice.ids[0] == choose([plain]).ids[0]
    raw = torch.log_softmax(torch.from_numpy(logits), -1)
    assert torch.allclose(choice.logprobs, raw[choice.ids].clamp(min=FLOOR), atol=1e-4), "of the raw distribution"


def test_a_mask_and_rules_that_leave_no_id_are_told() -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal(48).astype(np.float32)
    broken = logits.copy()
    broken[5] = np.nan
    early = Sampling(seed=0, temperature=1.0, min_new_tokens=5)
    choice = choose(
        [
            Line(logits, early, masked=(3,), guide=(3,)),
            Line(logits, early, masked=(3,), guide=(3, 4)),
            Line(logits, Sampling(seed=0), guide=()),
            Line(logits, Sampling(seed=0, **only(7)), guide=(8,)),
            Line(broken, Sampling(seed=0), guide=(8,)),
            Line(logits, Sampling(seed=0)),
        ]
    )
    assert np.isneginf(choice.logprobs.numpy()).tolist() == [True, False, True, True, False, False]
    assert choice.ids[1] == 4
    assert choice.logprobs[4].isnan()


def test_allowed_ids_outside_the_vocabulary_do_not_open_the_others() -> None:
    line = Line(np.arange(8, dtype=np.float32), Sampling(seed=0, **only(3, 8, -1)))
    assert choose([line]).ids.tolist() == [3]
    assert choose([dataclasses.replace(line, sampling=Sampling(seed=0, **only(8)))]).ids.tolist() == [0]
