"""Trains the demo's tower and projector against the frozen default language model, on scenes drawn here.

    python -m tools.demo_vlm.train --device cuda --minutes 7 --compile --out lightllm_mp/demo_vlm

Writes config.json, preprocessor_config.json, model.safetensors (float16, at most 16 MB), README.md (the model card) and
training.json. A run that is cut short leaves the weights of the last minute. Where nothing can be downloaded, the
language model travels as a file (98 MB), which --language-model names. Then accuracy is measured through the server,
which completes the card:

    python -m tools.demo_vlm.evaluate --scenes 1000 --card

On one H100 a picture with its three questions takes about 120 GFLOP, forward and back through the language model. It
reached 1,050 pictures a second, and waited 0.4 % of the time for the 14 processes that draw. The program prints both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightllm_mp.model_files.default_model import find_default_model
from lightllm_mp.text.tokenizer import load_tokenizer
from lightllm_mp.vision.vision_config import read_vision
from tests.demo_vlm.tiny_language import write_tiny_language
from tools.demo_vlm.answers import answers, right
from tools.demo_vlm.batches import IGNORE, PLANES, Batch, Scenes
from tools.demo_vlm.card import Figures, write_card
from tools.demo_vlm.language import FrozenLlama
from tools.demo_vlm.questions import KINDS
from tools.demo_vlm.scenes import KINDS as SCENE_KINDS
from tools.demo_vlm.tower import Shape, Tower, write_model
from tools.harness.command_line import ToolParser

SEED, HELD_OUT = 1, 2
"""Of the scenes that are trained on, and of those that accuracy is counted on."""
TINY = Shape(image=48, width=96, layers=2, heads=2)
NOTHING = 0.1
"""Weight of patches that show nothing beside those that show something."""
HARD = {"shape": 3.0}
"""Weights of planes that are learned late; 1 of others."""
WARM_UP = 0.03
"""Share of the run."""


class PatchHead(nn.Module):
    """Tells of each patch what it is part of (batches.PLANES). Thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(names) + 1 for names in PLANES.values()]
        self.linear = nn.Linear(width, sum(self.sizes))

    def loss(self, features: Tensor, planes: Tensor) -> Tensor:
        """Weighted mean over the planes. features [rows, patches, width]"""
        losses, weights = [], [HARD.get(name, 1.0) for name in PLANES]
        parts = self.linear(features).float().split(self.sizes, dim=-1)
        for logits, plane in zip(parts, planes.unbind(1), strict=True):
            weight = torch.ones(logits.shape[-1], device=logits.device)
            weight[-1] = NOTHING
            known = plane.flatten()
            losses.append(
                F.cross_entropy(logits.flatten(0, 1), known, weight, ignore_index=IGNORE)
                if bool((known != IGNORE).any())
                else logits.sum() * 0
            )
        return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def rate(progress: float) -> float:
    """Share of the highest learning rate: up, then down along a cosine to a hundredth."""
    if progress < WARM_UP:
        return progress / WARM_UP + 1e-3
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP)))) / 2


class Optimizer:
    """Muon for the matrices of the tower's layers, which halves the pictures that it takes to learn as much, AdamW for
    the rest. Biases, norms and positions do not decay."""

    def __init__(self, tower: Tower, head: PatchHead, args: argparse.Namespace, *, fused: bool) -> None:
        named = [*tower.named_parameters(), *head.named_parameters()]
        inner = [p for name, p in named if ".encoder." in name and p.ndim == 2]
        decaying = [p for name, p in named if ".encoder." not in name and p.ndim > 1 and "position" not in name]
        taken = {id(p) for p in (*inner, *decaying)}
        rest: list[dict[str, Any]] = [
            {"params": decaying, "weight_decay": args.decay},
            {"params": [p for _, p in named if id(p) not in taken], "weight_decay": 0.0},
        ]
        self._parts = (
            torch.optim.Muon(inner, lr=args.inner_rate, weight_decay=args.decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=args.rate, betas=(0.9, 0.98), fused=fused),
        )
        self._rates = (args.inner_rate, args.rate)

    def step(self, share: float) -> None:
        """With this share of the highest rates, after which gradients are gone."""
        for part, highest in zip(self._parts, self._rates, strict=True):
            for group in part.param_groups:
                group["lr"] = highest * share
            part.step()
            part.zero_grad(set_to_none=True)


def placed(batch: Batch, device: torch.device, *, whole: bool) -> Batch:
    """On the device; unless `whole`, without the columns that no row uses."""
    batch = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
    batch = batch._replace(pixels=batch.pixels.float())
    if whole:
        return batch
    used = int((batch.segments >= 0).any(0).sum())
    cut = {name: getattr(batch, name)[:, :used] for name in ("ids", "slots", "segments", "positions", "labels")}
    return batch._replace(**cut)


@torch.no_grad()
def measure(tower: Tower, language: FrozenLlama, batches: Iterable[Batch], device: torch.device) -> dict[str, Figures]:
    """By kind of question: how many there are and how many would be answered exactly by greedy decoding."""
    asked, good = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    for batch in batches:
        batch = placed(batch, device, whole=False)
        with precision(device):
            is_right = right(answers(tower, language, batch), batch)
        there = batch.kinds >= 0
        asked += torch.bincount(batch.kinds[there], minlength=len(KINDS)).cpu()
        good += torch.bincount(batch.kinds[there & is_right], minlength=len(KINDS)).cpu()
    return {k: Figures(int(n), int(g)) for k, n, g in zip(KINDS, asked, good, strict=True) if n}


def precision(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def show(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    tiny = {"steps": 2, "batch": 2, "period": 2, "workers": 0, "held_out": 2, "tiny": True}
    parser = ToolParser(__doc__, **tiny)
    parser.add_argument("--out", type=Path, help="folder that the model is written to")
    parser.add_argument("--language-model", type=Path, help="GGUF file; without it the default model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=1e9, help="of training, counted from the start")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=128, help="pictures of a step")
    parser.add_argument("--questions", type=int, default=3, help="of a picture")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--inner-rate", type=float, default=5e-3, help="the same, of matrices in the tower's layers")
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--patch-loss", type=float, default=1.0, help="weight at the start, falling to 0")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that draw")
    parser.add_argument("--held-out", type=int, default=4096, help="scenes that the last accuracy is counted on")
    parser.add_argument("--scene-kinds", nargs="+", choices=SCENE_KINDS, default=SCENE_KINDS)
    parser.add_argument("--period", type=int, help="only so many different scenes, and accuracy on these")
    parser.add_argument("--tiny", action="store_true", help="a small tower, for a try")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse(given)
    if args.out is None and not args.smoke:
        parser.error("--out is needed")
    return args


class Progress:
    """The losses and the waiting since the last report, and the clock of the run."""

    def __init__(self, args: argparse.Namespace, begin: float, device: torch.device) -> None:
        self._args, self._begin, self._learning = args, begin, begin
        self._losses = torch.zeros(2, device=device)
        self._since, self._reported, self._waited = 0, time.monotonic(), 0.0
        self.step = 0

    @property
    def share(self) -> float:
        """Of the run that is over, by steps or by time, whichever is more."""
        left = self._begin + self._args.minutes * 60 - self._learning
        return max(self.step / self._args.steps, (time.monotonic() - self._learning) / left)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._begin, 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    def stepped(self, loss: Tensor, patch_loss: Tensor) -> bool:
        """Count a step. Returns whether it is time for a report."""
        self._losses += torch.stack([loss.detach(), patch_loss.detach()])
        self.step, self._since = self.step + 1, self._since + 1
        if self.step == 1:
            self._learning = time.monotonic()  # the time that compiling took is no part of the schedule
        return time.monotonic() - self._reported > 30 or self.step in (1, 10, 50, self._args.steps)

    def report(self, accuracy: dict[str, float]) -> None:
        answer_loss, of_patches = (self._losses / self._since).tolist()
        passed = time.monotonic() - self._reported
        show(
            step=self.step,
            seconds=self.seconds,
            loss=round(answer_loss, 4),
            patch_loss=round(of_patches, 4),
            pictures_per_second=round(self._since * self._args.batch / passed, 1),
            waited=round(self._waited / passed, 3),
            **accuracy,
        )
        self._losses.zero_()
        self._since, self._reported, self._waited = 0, time.monotonic(), 0.0


def train(args: argparse.Namespace) -> dict[str, Figures]:
    """The whole run; returns accuracy on held-out scenes (on the training scenes with a period)."""
    begin = time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.manual_seed(SEED)
    device = torch.device(args.device)
    path = args.language_model or find_default_model()
    tokenizer = load_tokenizer(path)
    language = FrozenLlama(path, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    shape = TINY if args.tiny else Shape()
    tower = Tower(replace(shape, out=language.spec.hidden))
    write_model(args.out, tower)
    vision = read_vision(args.out)
    assert vision is not None

    def scenes(seed: int, rows: int) -> Scenes:
        kinds = tuple(args.scene_kinds)
        given = {"seed": seed, "rows": rows, "questions": args.questions, "kinds": kinds, "period": args.period}
        return Scenes(vision.spec, tokenizer, **given)

    drawn = _drawn(scenes(SEED, args.batch), args.workers, device)
    # The workers have been forked: now CUDA may be used.
    held_out = scenes(SEED if args.period else HELD_OUT, min(args.batch, 256))
    tower, language = tower.to(device), language.to(device)
    head = PatchHead(shape.width).to(device)
    if args.compile:
        tower.compile()
        for layer in language.layers:
            layer.compile()
    show(parameters=sum(p.numel() for p in tower.parameters()), start_seconds=round(time.monotonic() - begin, 1))
    progress = Progress(args, begin, device)
    _learn(tower, language, head, drawn, [held_out.batch(0)], progress, args)
    tower.load_state_dict(load_file(args.out / "model.safetensors"))
    rows = min(args.batch, 256)
    last = _eagerly(tower, language, _batches(held_out, -(-args.held_out // rows)), device)
    show(held_out=_accuracy(last), steps=progress.step, seconds=progress.seconds)
    trained: dict[str, Any] = {"image": shape.image, "patches": shape.grid**2, "steps": progress.step}
    trained |= {"pictures": progress.step * args.batch, "seconds": round(progress.seconds)}
    trained["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    write_card(args.out, trained, last, "teacher-forced, in the training program")
    return last


def _learn(
    tower: Tower,
    language: FrozenLlama,
    head: PatchHead,
    drawn: Iterator[Batch],
    quick: list[Batch],
    progress: Progress,
    args: argparse.Namespace,
) -> None:
    """Train until the steps or the minutes are over. Write the weights with each report, which counts on `quick`."""
    device = torch.device(args.device)
    optimizer = Optimizer(tower, head, args, fused=device.type == "cuda")
    while (share := progress.share) < 1:
        with progress.waiting():
            batch = placed(next(drawn), device, whole=args.compile)
        with precision(device):
            found = answers(tower, language, batch)
            loss = F.cross_entropy(found.logits.float(), found.targets)
            patch_loss = head.loss(found.features, batch.planes)
        (loss + args.patch_loss * (1 - share) * patch_loss).backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step(rate(share))
        if progress.stepped(loss, patch_loss):
            progress.report(_accuracy(_eagerly(tower, language, quick, device)))
            write_model(args.out, tower)
    write_model(args.out, tower)


def _drawn(scenes: Scenes, workers: int, device: torch.device) -> Iterator[Batch]:
    prefetch = 3 if workers else None
    pinned = device.type == "cuda"
    return iter(DataLoader(scenes, batch_size=None, num_workers=workers, prefetch_factor=prefetch, pin_memory=pinned))


def _batches(scenes: Scenes, count: int) -> Iterator[Batch]:
    return (scenes.batch(i) for i in range(count))


def _eagerly(tower: Tower, language: FrozenLlama, batches: Iterable[Batch], device: torch.device) -> dict[str, Figures]:
    """Without compiling anything for the other sizes of a measurement."""
    with torch.compiler.set_stance("force_eager"):
        return measure(tower, language, batches, device)


def _accuracy(figures: dict[str, Figures]) -> dict[str, float]:
    return {kind: round(one.right / one.asked, 4) for kind, one in figures.items()}


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if not args.smoke:
        train(args)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        args.out, args.language_model = Path(folder, "demo"), Path(folder, "tiny.gguf")
        write_tiny_language(args.language_model)
        train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
