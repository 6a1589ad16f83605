"""The training program on a tiny language model: what is learned, what is written, and what a row of questions is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from lightllm_mp.text.tokenizer import load_tokenizer
from lightllm_mp.vision.tower.tower_loader import load_encoder
from lightllm_mp.vision.vision_config import read_vision
from tests.demo_vlm.tiny_language import write_tiny_language
from tools.demo_vlm.answers import Answers, answers, right
from tools.demo_vlm.batches import IGNORE, Batch, Scenes
from tools.demo_vlm.language import FrozenLlama
from tools.demo_vlm.tower import Shape, Tower, write_model
from tools.demo_vlm.train import arguments, placed, train

SHAPE = Shape(image=48, patch=16, width=32, layers=2, heads=2, out=48)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("language") / "tiny.gguf"
    write_tiny_language(path)
    return path


def alone(batch: Batch, row: int, question: int) -> Batch:
    """One row with the one question, as a request has it."""
    kept = (batch.segments[row] == 0) | (batch.segments[row] == question + 1)
    cut = {n: getattr(batch, n)[row : row + 1, kept] for n in ("ids", "slots", "segments", "positions", "labels")}
    cut["segments"] = torch.where(cut["segments"] > 0, 1, 0).to(torch.int8)
    return batch._replace(
        pixels=batch.pixels[row : row + 1],
        kinds=batch.kinds[row : row + 1, question : question + 1],
        planes=batch.planes[row : row + 1],
        **cut,
    )


@torch.no_grad()
def test_questions_of_a_row_do_not_see_each_other(language: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    tower = Tower(SHAPE)
    write_model(tmp_path, tower)
    vision = read_vision(tmp_path)
    assert vision is not None
    scenes = Scenes(vision.spec, load_tokenizer(language), seed=3, rows=4, questions=3, text=500)
    batch = placed(scenes.batch(2), torch.device("cpu"), whole=True)
    assert (batch.kinds >= 0).all()
    model = FrozenLlama(language, dtype=torch.float32)
    together = answers(tower, model, batch)
    of_row, place = (batch.labels != IGNORE).nonzero().T
    for row in range(4):
        for question in range(3):
            single = alone(batch, row, question)
            there = (of_row == row) & (batch.segments[of_row, place] == question + 1)
            found = answers(tower, model, single)
            torch.testing.assert_close(found.logits, together.logits[there], atol=1e-4, rtol=0)
            assert found.targets.tolist() == together.targets[there].tolist()
            assert bool(right(found, single)) == bool(right(together, batch)[row, question])


def test_right_is_whole_answers_only() -> None:
    labels = torch.tensor([[IGNORE, 1, 2, IGNORE, 3, 4]])
    segments = torch.tensor([[0, 1, 1, 2, 2, 2]], dtype=torch.int8)
    empty = torch.zeros(0)
    batch = Batch(empty, labels, labels > 0, segments, labels, labels, torch.tensor([[0, 1, -1]]), empty)
    logits = torch.eye(5)[[1, 2, 3, 0]]
    assert right(Answers(logits, torch.tensor([1, 2, 3, 4]), empty), batch).tolist() == [[True, False, True]]


def test_a_run_learns_and_writes_a_whole_model(
    language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--steps 100 --batch 2 --period 2 --questions 1 --scene-kinds single --tiny --workers 0 --held-out 2"
    more = ["--rate", "4e-3", "--decay", "0", "--patch-loss", "0", "--out", str(tmp_path)]
    figures = train(arguments([*options.split(), "--language-model", str(language), *more]))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.3 * losses[0]
    assert sum(one.right for one in figures.values()) == sum(one.asked for one in figures.values()) == 2
    vision = read_vision(tmp_path)
    assert vision is not None
    assert load_encoder(vision, dtype=torch.float32).nbytes == 4 * lines[0]["parameters"]
    card = (tmp_path / "README.md").read_text()
    assert re.search(r"100 steps, 200 pictures", card)
    assert "cannot do" in card
