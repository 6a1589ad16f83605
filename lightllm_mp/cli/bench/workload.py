"""The requests of a benchmark: lengths of prompts and answers, and random prompts. The seed determines everything.

`sharegpt` lengths are log-normal and filtered like in the ShareGPT serving benchmarks: prompt and answer have at least
4 tokens, the prompt at most 1024, both together at most 2048. After the filter the means are 226.75 in and 188.25 out,
as in a published run of 2000 ShareGPT requests. The spreads follow from the coefficients of variation of that data set
(1.335 and 0.674 as sigma of the logarithm). The first 2000 requests of seed 0 have 470,634 tokens in and 377,679 out.

Prompts are random. No two share a prefix, so a prefix cache gains nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

from lightllm_mp.errors import ConfigError

MU_IN, SIGMA_IN, MU_OUT, SIGMA_OUT = 5.106040, 1.335, 5.012293, 0.674
SHORTEST, LONGEST_IN, LONGEST = 4, 1024, 2048
IMAGE_ID = -200
"""The placeholder of an image among token ids."""
FIRST_ID = 259
"""Lower ids are special tokens and single bytes in byte-level vocabularies."""

TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city"
)
WORDS = TEXT.split()


class Request(NamedTuple):
    """`prompt`: the placeholders of its images, then `input_len` token ids or words. `images`: their names."""

    prompt: list[int] | str
    input_len: int
    output_len: int
    images: tuple[str, ...] = ()


class Images(NamedTuple):
    """The images of each request. `repeats`: the share of images that were sent before. `tag`: the placeholder of an
    image in a text (IMAGE_ID among ids)."""

    each: int = 0
    repeats: float = 0.0
    tag: str = "<image>"


def make(
    n: int,
    input_len: str,
    output_len: str,
    *,
    seed: int = 0,
    prompt: Literal["ids", "text"] = "ids",
    vocab: int = 32000,
    name: str = "",
    images: Images | None = None,
) -> list[Request]:
    """n requests. Lengths are `N`, `uniform:a-b` or `sharegpt`, without images. Another `name` gives other prompts and
    images for the same seed."""
    ins, outs = _lengths(input_len, n, f"in-{seed}", seed, 0), _lengths(output_len, n, f"out-{seed}", seed, 1)
    fill = _ids if prompt == "ids" else _text
    images = images or Images()
    shown = _shown(images.repeats, f"{name}{seed}")
    return [
        Request(fill(i, f"prompt-{name}{seed}-{k}", vocab, images), i, o, tuple(islice(shown, images.each)))
        for k, (i, o) in enumerate(zip(ins, outs, strict=True))
    ]


def sharegpt(seed: int = 0) -> Iterator[tuple[int, int]]:
    """Yields pairs (prompt tokens, answer tokens) for ever."""
    rng = random.Random(f"lengths-{seed}")
    while True:
        i, o = round(math.exp(rng.gauss(MU_IN, SIGMA_IN))), round(math.exp(rng.gauss(MU_OUT, SIGMA_OUT)))
        if i >= SHORTEST and o >= SHORTEST and i <= LONGEST_IN and i + o <= LONGEST:
            yield i, o


def _lengths(spec: str, n: int, key: str, seed: int, column: int) -> list[int]:
    if spec == "sharegpt":
        return [pair[column] for pair in islice(sharegpt(seed), n)]
    low, high = _bounds(spec)
    rng = random.Random(key)
    return [rng.randint(low, high) for _ in range(n)]


def _bounds(spec: str) -> tuple[int, int]:
    kind, _, bounds = spec.rpartition(":")
    low, dash, high = bounds.partition("-")
    try:
        found = (int(low), int(high)) if kind == "uniform" and dash else (int(spec), int(spec))
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError(f"length {spec!r}: expected N, uniform:a-b or sharegpt, each length at least 1")
    return found


def _shown(repeats: float, key: str) -> Iterator[str]:
    """Yields names of images for ever: with probability `repeats` an earlier name, else a new one."""
    rng = random.Random(f"images-{key}")
    known = 0
    while True:
        again = known > 0 and rng.random() < repeats
        yield f"{key}-{rng.randrange(known) if again else known}"
        known += not again


def _ids(length: int, key: str, vocab: int, images: Images) -> list[int]:
    rng = random.Random(key)
    return [IMAGE_ID] * images.each + [rng.randrange(min(FIRST_ID, vocab - 1), vocab) for _ in range(length)]


def _text(length: int, key: str, vocab: int, images: Images) -> str:
    rng = random.Random(key)
    return images.tag * images.each + " ".join(rng.choice(WORDS) for _ in range(length))
