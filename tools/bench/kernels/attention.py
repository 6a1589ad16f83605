"""Measures the attention kernels alone on one GPU: decode over keys and values of each type, even and uneven lengths,
latent attention, prefill. Each figure is one JSON line.

    python -m tools.bench.kernels.attention [--only WORD]             # figures whose name has this word
    python -m tools.bench.kernels.attention --sweep decode|prefill|latent [--head-dim 128] [--kv bfloat16|int8|fp8]

A sweep tries block sizes and prints the best, for kernels/triton/attention/tuned_attention.py.
Limits are what this GPU reaches, measured at the start (tools/harness/ceilings.py).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton.attention import tuned_attention
from lightllm_mp.kernels.triton.block_sizes import dot_block
from tools.harness.ceilings import ceilings
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.gpu import best, captured, new_step, random_step, require_gpus, seconds

STORED = {"bfloat16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
POOL_BYTES = 400e6
"""Bytes of keys and values of all layers together, so many that no layer is still in the cache at its next turn. There
are at least two layers, because the same layer again begins a new step."""

STAGES = (2, 3, 5)
"""Stages to try. A kernel loads slots before keys, so 5 stages are the fewest that load a block of keys during the work
on another."""

Lengths = list[tuple[int, int]]
"""(new tokens, context) of each sequence."""


def heads(query: int, kv: int, dim: int = 128, **more: Any) -> HeadLayout:
    return HeadLayout(heads=query, kv_heads=kv, head_dim=dim, scale=dim**-0.5, **more)


def latent(query: int) -> HeadLayout:
    """DeepSeek-V2: 128 heads; V2-Lite: 16."""
    return HeadLayout(heads=query, kv_heads=1, head_dim=576, scale=192**-0.5, value_dim=512)


LAYOUTS = {
    "mha 32/32": heads(32, 32),
    "gqa 32/8": heads(32, 8),
    "gqa 32/8 softcap": heads(32, 8, softcap=50.0),
    "gqa 32/8 alibi": heads(32, 8, alibi=tuple(2.0 ** -(i / 4) for i in range(32))),
    "gqa 28/4": heads(28, 4),
    "latent 16": latent(16),
    "latent 128": latent(128),
}
UNEVEN: Lengths = [(1, 4000)] + [(1, 100 + 13 * i) for i in range(63)]
DECODE: dict[str, Lengths] = {
    "1 x 1088": [(1, 1088)],
    "16 x 1088": [(1, 1088)] * 16,
    "64 x 1088": [(1, 1088)] * 64,
    "64 uneven": UNEVEN,
    "64 uneven, longest last": UNEVEN[::-1],
    "256 x 371": [(1, 371)] * 256,
}
PREFILL: dict[str, Lengths] = {
    "16 x 2048": [(2048, 2048)] * 16,
    "1 x 512": [(512, 512)],
    "2 x 1024 of 4096": [(1024, 4096)] * 2,
}


class Case:
    """One step's attention over several layers of keys and values, slots scattered token by token."""

    def __init__(self, layout: HeadLayout, stored: torch.dtype, lengths: Lengths) -> None:
        self.layout = layout
        new, contexts = [n for n, _ in lengths], [c for _, c in lengths]
        self.batch = random_step(new, contexts)
        scales = 2 if stored.itemsize == 1 else 0
        width = layout.head_dim if layout.value_dim else 2 * layout.head_dim
        line = layout.kv_heads * (width * stored.itemsize + 2 * scales)
        self.bytes = sum(contexts) * line
        pairs = sum(n * (c - n) + n * (n + 1) // 2 for n, c in lengths)
        self.operations = 2 * pairs * layout.heads * (layout.head_dim + layout.values)
        layers = max(2, min(16, round(POOL_BYTES / self.bytes)))
        self.layers = [self._layer(sum(contexts), stored) for _ in range(layers)]
        self.q = torch.randn(sum(new), layout.heads * layout.head_dim, device="cuda").bfloat16()
        self.attention = op_table("cuda", self.q.dtype).attention

    def _layer(self, slots: int, stored: torch.dtype) -> LayerKV:
        shape = (slots + 1, self.layout.kv_heads, self.layout.head_dim)
        keys = self._random(shape, stored)
        if self.layout.value_dim:
            return LayerKV(keys, keys[..., : self.layout.value_dim])
        if stored.itemsize > 1:
            return LayerKV(keys, self._random(shape, stored))
        scales = torch.rand((*shape[:2], 2), device="cuda").half() / 40
        return LayerKV(keys, self._random(shape, stored), *scales.unbind(-1))

    @staticmethod
    def _random(shape: tuple[int, ...], stored: torch.dtype) -> torch.Tensor:
        if stored == torch.int8:
            return torch.randint(-127, 128, shape, device="cuda", dtype=torch.int8)
        return torch.randn(shape, device="cuda").to(stored)

    @property
    def least(self) -> float:
        """Seconds at the limits."""
        at = ceilings()
        return max(self.bytes / at.bandwidth, self.operations / at.product)

    def run(self) -> None:
        batch = new_step(self.batch)
        for layer in self.layers:
            self.attention(self.q, layer, batch, self.layout)

    def seconds(self, repeats: int = 20) -> float:
        """Seconds of one layer, inside a CUDA graph of all layers."""
        return seconds(captured(self.run).replay, repeats=repeats) / len(self.layers)


def cases(only: str) -> Iterator[tuple[str, Case, bool]]:
    """(title, case, whether it decodes) of all cases whose title contains the word."""
    for kind, lengths_of in (("decode", DECODE), ("prefill", PREFILL)):
        for (name, layout), (what, lengths) in itertools.product(LAYOUTS.items(), lengths_of.items()):
            for stored_as, stored in STORED.items():
                title = f"{kind} attention, {name}, {stored_as}: {what}"
                special = layout.value_dim or layout.softcap or layout.alibi
                if only in title and (not special or stored_as == "bfloat16"):
                    yield title, Case(layout, stored, lengths), kind == "decode"


def measure(figures: Figures, title: str, case: Case, decode: bool) -> None:
    """The share is the time at the limits over the measured time."""
    took = case.seconds()
    rate = round(case.bytes / took / 1e9, 1) if decode else round(case.operations / took / 1e12, 1)
    unit, share = "GB/s" if decode else "TFLOP/s", round(case.least / took, 3)
    figures.add(title, took * 1e6, "us a layer", rate=rate, rate_unit=unit, share=share)


def sweep_decode(dim: int, stored: str) -> None:
    wide, narrow = heads(32, 32, dim), heads(32, 8, dim)
    sizes = [(wide, DECODE["16 x 1088"]), (narrow, DECODE["64 x 1088"]), (wide, UNEVEN), (narrow, UNEVEN)]
    cases = [Case(layout, STORED[stored], lengths) for layout, lengths in sizes]
    key = (dot_block(dim), STORED[stored].itemsize)
    shapes = itertools.product((32, 64, 128), (2, 4), STAGES, (2, 3, 4, 6))
    chosen = swept(tuned_attention.DECODE, key, (tuned_attention.DecodeBlocks(*trial) for trial in shapes), cases)
    swept(tuned_attention.DECODE, key, (chosen._replace(start=start) for start in (0, 1, 2, 3, 4)), cases)


def sweep_prefill(dim: int, stored: str) -> None:
    sizes = [(heads(32, 32, dim), PREFILL["16 x 2048"]), (heads(32, 8, dim), PREFILL["2 x 1024 of 4096"])]
    cases = [Case(layout, STORED[stored], lengths) for layout, lengths in sizes]
    shapes = itertools.product((128,), (32, 64, 128), (4, 8), STAGES)
    trials = [*shapes, (256, 64, 8, 3), (256, 64, 8, 5), (256, 32, 8, 5), (64, 64, 4, 3), (64, 64, 4, 5)]
    key = (dot_block(dim), STORED[stored].itemsize)
    swept(tuned_attention.PREFILL, key, (tuned_attention.PrefillBlocks(*trial) for trial in trials), cases)
    if key not in tuned_attention.PREFILL_FEW:
        return
    few = [Case(heads(32, kv, dim), STORED[stored], PREFILL["1 x 512"]) for kv in (32, 8)]
    trials = [*itertools.product((32, 64), (32, 64, 128), (4,), STAGES), (128, 64, 8, 3), (128, 64, 8, 5)]
    swept(tuned_attention.PREFILL_FEW, key, (tuned_attention.PrefillBlocks(*trial) for trial in trials), few)


def sweep_latent() -> None:
    for rows, query in ((16, 16), (64, 128)):
        cases = [Case(latent(query), torch.bfloat16, DECODE[name]) for name in ("16 x 1088", "64 x 1088", "64 uneven")]
        trials = itertools.product((16, 32, 64), (4, 8), STAGES, (1, 2))
        swept(
            tuned_attention.LATENT_DECODE, (rows, 2), (tuned_attention.DecodeBlocks(*trial) for trial in trials), cases
        )
    cases = [Case(latent(query), torch.bfloat16, PREFILL["2 x 1024 of 4096"]) for query in (16, 128)]
    trials = itertools.product((64, 128), (16, 32, 64), (4, 8), (3, 5))
    swept(tuned_attention.LATENT_PREFILL, 2, (tuned_attention.PrefillBlocks(*trial) for trial in trials), cases)


def swept(table: dict, key: object, trials: Iterable[tuple], cases: list[Case]) -> Any:
    """Prints the best trials by their mean share of the limit, with the share in each case; returns the best one."""
    before, shares_of = table[key], {}

    def score(blocks: tuple) -> float:
        table[key] = blocks
        shares = shares_of[blocks] = [case.least / case.seconds(repeats=7) for case in cases]
        return sum(shares) / len(shares)

    found = best(trials, score)
    table[key] = before
    for mean, blocks in found[:10]:
        print(f"{key}: {mean:.3f} {blocks} {[round(share, 3) for share in shares_of[blocks]]}", flush=True)
    return found[0][1] if found else before


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, only="mha 32/32, bfloat16: 16 x 1088")
    parser.add_argument("--only", default="")
    parser.add_argument("--sweep", choices=("decode", "prefill", "latent"))
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--kv", choices=STORED, default="bfloat16")
    flags = parser.parse(argv)
    require_gpus()
    with torch.inference_mode():
        if flags.sweep == "latent":
            sweep_latent()
        elif flags.sweep:
            (sweep_decode if flags.sweep == "decode" else sweep_prefill)(flags.head_dim, flags.kv)
        else:
            figures = Figures()
            for case in cases(flags.only):
                measure(figures, *case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
