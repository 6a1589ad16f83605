"""Sampling noise follows the documented integer formula and is uniform; neighbours are unrelated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightllm_mp.engine.sampling.noise import GAMMA, id_words, log_exponential, mix64, noise_words, row_keys

CPU = torch.device("cpu")
M32, M64 = (1 << 32) - 1, (1 << 64) - 1
DRAWS = 1 << 17


def keys(seeds: list[int] | np.ndarray, positions: list[int] | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(row_keys(np.array(seeds, np.int64), np.array(positions, np.int64)))


def uniform(seed: int, position: int, ids: int = DRAWS) -> np.ndarray:
    """The uniform numbers from which one row's noise is made, as float64."""
    log_e = log_exponential(id_words(ids, CPU), keys([seed], [position]))[0].double()
    return -torch.expm1(-log_e.exp()).numpy()


def formula(seed: int, position: int, token: int) -> int:
    """The formula in noise.py's docstring in plain integers."""

    def mix64(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
        return x ^ (x >> 31)

    key = mix64((mix64(seed & M64) + position * 0x9E3779B97F4A7C15) & M64)
    x = (token + 0x9E3779B9) & M32
    x = (x ^ (x >> 16)) * 0x7FEB352D & M32
    x = (x ^ (x >> 15)) * 0x846CA68B & M32
    x = (x ^ (x >> 16)) + (key & M32) & M32
    x = ((x ^ (x >> 16)) * 0x7FEB352D + (key >> 32)) & M32
    x = (x ^ (x >> 15)) * 0x846CA68B & M32
    return x >> 1


@pytest.mark.parametrize(
    ("seed", "position", "token", "word"),
    [
        (0, 0, 0, 1463261007),
        (0, 1, 0, 1769338205),
        (1, 0, 0, 1560031899),
        (-1, 7, 49151, 267912820),
        (0x0123456789ABCDEF, 131071, 151935, 860228872),
    ],
)
def test_known_answers(seed: int, position: int, token: int, word: int) -> None:
    found = noise_words(id_words(token + 1, CPU), keys([seed], [position]))
    assert int(found[0, token]) == word


def test_keys_are_made_by_splitmix64() -> None:
    """The first output of the published generator for seed 0."""
    assert int(mix64(np.array([GAMMA]))[0]) == 0xE220A8397B1DCDAF


def test_tensor_code_follows_the_formula() -> None:
    seeds, positions = [0, 3, -(2**63), 2**63 - 1], [0, 1, 5, 2**31 - 1]
    found = noise_words(id_words(1000, CPU), keys(seeds, positions))
    expected = [[formula(s, p, token) for token in range(1000)] for s, p in zip(seeds, positions, strict=True)]
    assert found.tolist() == expected


def test_noise_is_the_float_of_the_word() -> None:
    words = noise_words(id_words(4096, CPU), keys([5], [9]))[0].tolist()
    noise = log_exponential(id_words(4096, CPU), keys([5], [9]))[0].tolist()
    for word, value in zip(words, noise, strict=True):
        u = word * (1 - 2.0**-24) * 2.0**-31 + 2.0**-32
        assert math.isclose(value, math.log(-math.log1p(-u)), rel_tol=2e-5, abs_tol=2e-5)


@pytest.mark.parametrize("word", [0, 1, 2**31 - 1])
def test_extreme_words_stay_finite(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    extreme = torch.full((1, 1), word, dtype=torch.int32)
    monkeypatch.setattr("lightllm_mp.engine.sampling.noise.noise_words", lambda words, keys: extreme)
    assert log_exponential(extreme, extreme).isfinite().all()


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 0), (0, 1), (2**62 + 12345, 4000)])
def test_uniform(seed: int, position: int) -> None:
    u = np.sort(uniform(seed, position))
    steps = np.arange(DRAWS)
    kolmogorov = max((u - steps / DRAWS).max(), ((steps + 1) / DRAWS - u).max()) * math.sqrt(DRAWS)
    assert kolmogorov < 1.95, "p < 0.001"
    counts = np.bincount((u * 256).astype(int), minlength=256)
    assert chi_square(counts, DRAWS / 256) < 4


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_tail_is_as_heavy_as_it_must_be(bits: int) -> None:
    """Unlikely ids win by a small u."""
    seeds, bound = list(range(16)), math.log(-math.log1p(-(2.0**-bits)))
    drawn = int((log_exponential(id_words(DRAWS, CPU), keys(seeds, [17] * 16)) < bound).sum())
    expected = 16 * DRAWS / 2**bits
    assert abs(drawn - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("other", "roll"),
    [((8, 100), 0), ((7, 101), 0), ((7, 100 + 2**16), 0), ((7 + 2**32, 100), 0), ((-7, 100), 0), ((7, 100), 1)],
    ids=["next seed", "next position", "far position", "high seed bit", "negated seed", "next id"],
)
def test_neighbours_are_independent(other: tuple[int, int], roll: int) -> None:
    first, second = uniform(7, 100), np.roll(uniform(*other), roll)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(DRAWS)
    counts = np.histogram2d(first, second, bins=16, range=((0, 1), (0, 1)))[0].ravel()
    assert chi_square(counts, DRAWS / 256) < 4


def test_one_id_over_many_positions_and_seeds() -> None:
    """The numbers are uniform also over time in one sequence, and over many requests at once."""
    numbers = np.arange(1 << 16)
    for key in (keys(np.full_like(numbers, 3), numbers), keys(numbers, np.full_like(numbers, 3))):
        u = -torch.expm1(-log_exponential(id_words(8, CPU), key).double().exp())
        for column in u.T.numpy():
            counts = np.bincount((column * 256).astype(int), minlength=256)
            assert chi_square(counts, len(numbers) / 256) < 4.5


def chi_square(counts: np.ndarray, expected: float) -> float:
    """The chi-square statistic of equally likely bins, in standard deviations from its mean."""
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return abs(statistic - freedom) / math.sqrt(2 * freedom)
