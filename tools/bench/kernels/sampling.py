"""Measures sampling of a batch on a GPU: the device sampler and the torch sampler.

    python -m tools.bench.kernels.sampling [--repeats 30]

Prints one JSON line a figure, medians in microseconds: the time on the device from the first kernel's start to the last
kernel's end, including gaps, and `host`, the time until the call returns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.sampling.cuda_sampler import CudaSampler
from lightllm_mp.engine.sampling.rules import RuleTable
from lightllm_mp.engine.sampling.torch_sampler import TorchSampler
from lightllm_mp.messages import Sampling
from lightllm_mp.plan import PlanBuilder, unpack
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.gpu import require_gpus

SHAPES = ((1, 32000), (64, 32000), (256, 32000), (256, 128256))
HISTORY = 1000
"""The number of tokens that penalties count."""
CASES = {
    "greedy": Sampling(seed=1),
    "temperature": Sampling(seed=1, temperature=0.8),
    "top-k + top-p": Sampling(seed=1, temperature=0.8, top_k=50, top_p=0.95),
    "top-p": Sampling(seed=1, temperature=0.8, top_p=0.95),
    "top-p, nearly uniform": Sampling(seed=1, temperature=100.0, top_p=0.95),
    "penalties": Sampling(seed=1, temperature=0.8, repetition_penalty=1.1, frequency_penalty=0.2),
}


def random_logits(n: int, vocab: int) -> Tensor:
    """float32 [n, vocab] with a few logits far above the others, as from a language model."""
    noise = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn((n, vocab), device="cuda", generator=noise) * 2
    logits[:, :: vocab // 20] += 12
    return logits


def choosers(sampling: Sampling, n: int, vocab: int) -> dict[str, Callable[[Tensor], object]]:
    device = torch.device("cuda")
    tokens = torch.randint(0, vocab, (n + 1, HISTORY + 8), dtype=torch.int32, device=device)
    builder = PlanBuilder(0)
    for row in range(n):
        builder.setup(row, 1, sampling)
    setups = unpack(builder.pack()).setups
    new = CudaSampler(RuleTable(n, vocab, device), tokens)
    new.set(setups)
    old = TorchSampler(RuleTable(n, vocab, device), tokens)
    for setup in setups:
        old.rules.set(setup)
    rows, positions = np.arange(n, dtype=np.int32), np.full(n, HISTORY, np.int64)
    at = torch.from_numpy(rows).cuda(), torch.from_numpy(positions.astype(np.int32)).cuda()
    return {
        "device": lambda logits: new.choose(logits, rows, positions, at),
        "torch": lambda logits: old.choose(logits, rows, positions),
    }


@torch.inference_mode()
def measure(choose: Callable[[Tensor], object], logits: Tensor, repeats: int) -> tuple[float, float]:
    """Median microseconds on the device and on the host."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    device, host, copy = [], [], torch.empty_like(logits)
    for _ in range(repeats + 3):
        copy.copy_(logits)
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        choose(copy)
        end.record()
        host.append((time.perf_counter() - start) * 1e6)
        torch.cuda.synchronize()
        device.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(device[3:]), statistics.median(host[3:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, repeats=2)
    parser.add_argument("--repeats", type=int, default=30)
    flags = parser.parse(argv)
    require_gpus()
    figures = Figures()
    for n, vocab in SHAPES[:1] if flags.smoke else SHAPES:
        logits = random_logits(n, vocab)
        for case, sampling in CASES.items():
            for name, choose in choosers(sampling, n, vocab).items():
                device, host = measure(choose, logits, flags.repeats)
                title = f"{case}, {n} rows of {vocab}: {name} sampler"
                figures.add(title, round(device, 1), "us", host=round(host, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
