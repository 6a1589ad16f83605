"""Makes random models and steps on a GPU and measures times there."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch

from lightllm_mp.kernels.batch import AttentionSchedule, Batch
from lightllm_mp.kernels.select import op_table
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.families.llama import LLAMA
from lightllm_mp.models.spec import ModelSpec, RopeSpec
from tools.harness.command_line import skip

Trial = TypeVar("Trial")


def require_gpus(count: int = 1) -> None:
    """Ends the tool if the machine has fewer GPUs."""
    if torch.cuda.device_count() < count:
        skip(f"needs {count} CUDA GPU{'s' * (count > 1)}; this machine has {torch.cuda.device_count()}")


def spec(name: str, kv_heads: int, intermediate: int, vocab: int, theta: float, layers: int = 32) -> ModelSpec:
    return ModelSpec(
        family=name,
        vocab=vocab,
        hidden=4096,
        layers=layers,
        heads=32,
        kv_heads=kv_heads,
        head_dim=128,
        intermediate=intermediate,
        norm_eps=1e-5,
        rope=RopeSpec(theta=theta, dim=128),
        max_context=8192,
        eos_ids=(2,),
        file_dtype="bfloat16",
    )


SPECS = {
    "llama2-7b": spec("llama2-7b", 32, 11008, 32000, 10000.0),
    "llama3-8b": spec("llama3-8b", 8, 14336, 128256, 500000.0),
    "two-layers": spec("two-layers", 8, 11008, 32000, 10000.0, layers=2),
}
"""The last one is for smoke runs."""
MODELS = ("llama2-7b", "llama3-8b")


def random_decoder(model: ModelSpec) -> Decoder:
    """Projections from N(0, 0.02), norms of 1, bfloat16, made on the GPU."""
    params, ops = LLAMA.hf_weights(model), op_table("cuda", torch.bfloat16)
    weights = ModelWeights(params, ops, device="cuda", dtype=torch.bfloat16)
    random = torch.Generator("cuda").manual_seed(0)
    for param in params:
        for piece in param.pieces:
            tensor = torch.ones(piece.shape, dtype=torch.bfloat16, device="cuda")
            weights.add(piece.name, tensor if len(piece.shape) == 1 else tensor.normal_(0, 0.02, generator=random))
    return Decoder(model, ops, weights, device="cuda")


def random_pool(model: ModelSpec, slots: int) -> KVPool:
    """Fills keys and values with normally distributed numbers: zeros would be faster."""
    pool = KVPool(model, slots, dtype=torch.bfloat16, device="cuda")
    for layer in pool.data:
        layer.normal_()
    return pool


def random_step(new: list[int], contexts: list[int]) -> Batch:
    """A step over sequences whose slots are scattered over the pool token by token."""
    slots = torch.randperm(sum(contexts), device="cuda")
    table = torch.zeros((len(contexts), max(contexts)), dtype=torch.int32, device="cuda")
    for row, part in enumerate(slots.int().split(contexts)):
        table[row, : len(part)] = part
    return Batch.of(new, contexts, list(range(len(contexts))), table)


def new_step(batch: Batch) -> Batch:
    """A step with the same tensors that has not begun."""
    return replace(batch, schedule=AttentionSchedule())


def seconds(work: Callable[[], object], *, repeats: int = 20, warm_up: int = 3) -> float:
    """Median duration on the device of calls that follow each other without a pause."""
    for _ in range(warm_up):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1e3


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Captures the work as one CUDA graph. It runs twice before, so that the capture compiles and sets up nothing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def best(trials: Iterable[Trial], score: Callable[[Trial], float]) -> list[tuple[float, Trial]]:
    """(score, trial) of the trials that fit the GPU, the highest score first."""
    from triton.runtime.errors import OutOfResources

    found = []
    for trial in trials:
        try:
            found.append((score(trial), trial))
        except OutOfResources:
            continue
    return sorted(found, key=lambda pair: -pair[0])


def device_facts() -> str:
    return f"{torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}"
