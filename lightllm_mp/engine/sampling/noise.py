"""Counter-based sampling noise: a pure function of (seed, position, token id), in integer arithmetic.

Each pair (seed, position) gives two 32-bit keys by SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; its finaliser is Stafford's variant 13), and each id a 32-bit word by lowbias32 (C. Wellons,
hash-prospector). The keys then go into a second lowbias32 round:

    key0 | key1 << 32 = mix64(mix64(seed) + position * 0x9E3779B97F4A7C15)            modulo 2^64
    x  = lowbias32(id + 0x9E3779B9) + key0                                            modulo 2^32 from here on
    x ^= x >> 16;  x *= 0x7FEB352D;  x += key1;  x ^= x >> 15;  x *= 0x846CA68B;  x >>= 1
    u  = float32(x) * (1 - 2^-24) * 2^-31 + 2^-32                                     uniform in (0, 1)
    noise = -log(-log1p(-u))                                                          standard Gumbel

The round's last `x ^= x >> 16` is left out: it changes only low bits, which rounding in `u` nearly removes. `u` near 0
is the tail in which unlikely ids win; float32 resolves it down to 2^-32, so ids of probability 1e-9 get their share.
The integer part is the same on every device; the two logarithms are the device's own functions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAMMA = np.uint64(0x9E3779B97F4A7C15)
GOLDEN32 = 0x9E3779B9
STEP = (1.0 - 2.0**-24) * 2.0**-31


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_keys(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """Keys int32 [n, 2] of n rows: `seeds` are read as 64-bit patterns, `positions` are of the tokens to sample."""
    keys = mix64(mix64(seeds.astype(np.uint64)) + positions.astype(np.uint64) * GAMMA)
    return keys.astype("<u8").view("<i4").reshape(-1, 2)


@lru_cache(maxsize=4)
def id_words(vocab: int, device: torch.device) -> Tensor:
    """int32 [vocab]: the word of each token id, before the keys."""
    x = torch.arange(vocab, dtype=torch.int32, device=device) + _signed(GOLDEN32)
    spare = torch.empty_like(x)
    _shift_xor(x, 16, spare).mul_(_signed(0x7FEB352D))
    _shift_xor(x, 15, spare).mul_(_signed(0x846CA68B))
    return _shift_xor(x, 16, spare)


def noise_words(words: Tensor, keys: Tensor) -> Tensor:
    """The last `x`, int32 [n, ids] of 31 bits, for `words` int32 [ids] or [n, ids] and `keys` int32 [n, 2]."""
    x = words + keys[:, :1]
    spare = torch.empty_like(x)
    _shift_xor(x, 16, spare).mul_(_signed(0x7FEB352D)).add_(keys[:, 1:])
    _shift_xor(x, 15, spare).mul_(_signed(0x846CA68B))
    return x.bitwise_right_shift_(1).bitwise_and_(0x7FFFFFFF)


def log_exponential(words: Tensor, keys: Tensor) -> Tensor:
    """The negative of Gumbel noise, float32 [n, ids]: the log of exponential noise, to be subtracted from scores."""
    return torch.rsub(noise_words(words, keys).to(torch.float32), -(2.0**-32), alpha=STEP).log1p_().neg_().log_()


def _shift_xor(x: Tensor, bits: int, spare: Tensor) -> Tensor:
    """x ^= x >> bits with zeros shifted in: an int32 shift copies the sign, so the top bits are masked."""
    torch.bitwise_right_shift(x, bits, out=spare)
    return x.bitwise_xor_(spare.bitwise_and_(0xFFFFFFFF >> bits))


def _signed(word: int) -> int:
    """The 32-bit pattern `word` as the int32 that torch needs."""
    return word - (1 << 32) if word >= 1 << 31 else word
