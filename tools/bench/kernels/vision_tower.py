"""Measures the vision tower alone, and the copies of an image's embeddings to a worker.

    python -m tools.bench.kernels.vision_tower --model-dir DIR [--load-format dummy] [--device cuda]
    python -m tools.bench.kernels.vision_tower --shape llava-1.5-7b                     # random weights

Prints one JSON line a figure: images per second of one tower in the visual actor's batches, the tower's share of the
fastest matrix product of the same run, and for one image the copies into the cache (from the tower's device to shared
memory) and out of it (to a worker's device), as the actors do them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lightllm_mp.actors.visual.actor import PATCHES
from lightllm_mp.engine.image_embeddings import PORTABLE, pin
from lightllm_mp.kernels.select import set_threads
from lightllm_mp.shm import Arena
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import PatchGrid, patch_grid
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.tower.tower_loader import load_encoder
from lightllm_mp.vision.vision_config import VisionModel, read_vision
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures, median_seconds
from tools.harness.models import SHAPES, write_shape

EDGES = {"cpu": 2048, "cuda": 8192}
"""Edge of the matrices whose product is the ceiling."""
figure = Figures().add


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median of one call."""

    def once() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return median_seconds(once, rounds)


def operations(spec: VisionSpec, tokens: int) -> float:
    """Multiplications and additions for an image of `tokens` patches, without norms and softmax, for attention over all
    patches and a projector of two layers, as in LLaVA-1.5."""
    matrices = 4 * spec.width**2 + (3 if spec.gated else 2) * spec.width * spec.intermediate
    layer = 2 * tokens * matrices + 4 * tokens**2 * spec.width
    ends = 2 * tokens * spec.width * spec.patch_values + 2 * tokens * (spec.width + spec.out) * spec.out
    return spec.layers * layer + ends


def pixels(spec: VisionSpec, edge: int) -> tuple[Preprocessed, PatchGrid]:
    grid = patch_grid(spec, edge, edge)
    fixed = spec.preprocess.mode != "dynamic"
    shape = (3, spec.preprocess.size, spec.preprocess.size) if fixed else (grid.patches, spec.patch_values)
    return Preprocessed(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), grid), grid


def measure(vision: VisionModel, flags: argparse.Namespace) -> None:
    device, dtype = torch.device(flags.device), getattr(torch, flags.data_type)
    if device.type == "cpu":
        set_threads(flags.threads)
    spec = vision.spec
    encoder = load_encoder(vision, device=device, dtype=dtype, load_format=flags.load_format)
    image, grid = pixels(spec, flags.edge)
    batch = [image] * (2 if flags.smoke else max(1, PATCHES[device.type] // grid.patches))
    rate = len(batch) / seconds(lambda: encoder.encode(batch), device, flags.rounds)
    lone = seconds(lambda: encoder.encode([image]), device, flags.rounds)
    edge = 256 if flags.smoke else EDGES[device.type]
    left, right = (torch.randn(edge, edge, dtype=dtype, device=device) for _ in range(2))
    ceiling = 2 * edge**3 / seconds(lambda: left @ right, device, flags.rounds)
    figure(f"tower: batches of {len(batch)}", rate, "images/s")
    figure("tower: one image", lone * 1000, "ms")
    figure(f"ceiling: {edge} x {edge} x {edge} in {flags.data_type}", ceiling / 1e12, "TFLOP/s")
    figure("tower: share of the ceiling", rate * operations(spec, grid.patches) / ceiling * 100, "%")
    hand_over(encoder.encode([image])[0], device, flags.rounds)


def hand_over(rows: torch.Tensor, device: torch.device, rounds: int) -> None:
    """The copies of VisualActor._write and of a worker's step, through the same kind of memory."""
    arena = Arena.create(4 * rows.nbytes)
    memory = torch.frombuffer(arena.segment.view, dtype=torch.uint8)
    if device.type == "cuda":
        pin(memory, device, PORTABLE)
    block = arena.alloc(rows.nbytes)
    assert block is not None
    place = torch.frombuffer(arena.payload(block), dtype=rows.dtype, count=rows.numel()).view(rows.shape)
    there = torch.empty_like(rows)
    into = seconds(lambda: place.copy_(rows), device, 20 * rounds)
    out = seconds(lambda: there.copy_(place, non_blocking=True), device, 20 * rounds)
    assert torch.equal(there, rows)
    figure("hand-over: embeddings of one image", rows.nbytes / (1 << 20), "MiB")
    figure("hand-over: tower to cache", into * 1e6, "us")
    figure("hand-over: cache to worker", out * 1e6, "us")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, shape="tiny", rounds=1, device="cpu")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model-dir", type=Path)
    where.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data-type", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--edge", type=int, default=336, help="pixels of the image, where the tower takes any")
    parser.add_argument("--rounds", type=int, default=10)
    flags = parser.parse(argv)
    if not (flags.model_dir or flags.shape):
        parser.error("--model-dir or --shape is needed")
    with tempfile.TemporaryDirectory() as place:
        if flags.shape:
            flags.model_dir, flags.load_format = write_shape(flags.shape, Path(place)), "dummy"
        vision = read_vision(flags.model_dir)
        if vision is None:
            parser.error(f"{flags.model_dir} has no vision tower")
        measure(vision, flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
