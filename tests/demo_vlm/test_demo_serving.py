"""A vision folder beside a language model of its own: served, it answers as the training program's own forward pass."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightllm_mp import Config, Engine
from lightllm_mp.cli.inspect.report import inspect
from lightllm_mp.config import EngineConfig, ModelConfig, MultimodalConfig
from lightllm_mp.errors import ModelError
from lightllm_mp.model_files import default_model
from lightllm_mp.models.checkpoint.preflight import check_weights
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.offline import Completion
from lightllm_mp.text.tokenizer import load_tokenizer
from lightllm_mp.vision.preprocess import preprocess
from lightllm_mp.vision.vision_config import read_vision
from tests.demo_vlm.tiny_language import write_tiny_language
from tools.demo_vlm.answers import greedy
from tools.demo_vlm.drawing import drawn
from tools.demo_vlm.language import FrozenLlama
from tools.demo_vlm.prompts import Ids, Style, styles
from tools.demo_vlm.scenes import sample
from tools.demo_vlm.tower import Shape, Tower, write_model

QUESTION = "What is in the picture?"
TOKENS = 5
SMALL = Shape(image=48, patch=16, width=32, layers=2, heads=2, out=48)


def write_random(folder: Path, shape: Shape, language_model: str) -> None:
    """Weights that nobody trained, large enough to make a difference."""
    torch.manual_seed(9)
    tower = Tower(shape)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1.5)
    write_model(folder, tower, language_model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random(tmp_path, SMALL, "tiny.gguf")
    write_tiny_language(tmp_path / "tiny.gguf")
    return tmp_path


def pictures() -> list[bytes]:
    """PNG files of different sizes."""
    files = []
    for number in (0, 2, 5):
        draw, data = np.random.default_rng((8, number)), io.BytesIO()
        drawn(sample(draw), draw).save(data, "PNG")
        files.append(data.getvalue())
    return files


class Reference:
    """What the training program computes, in float32."""

    def __init__(self, folder: Path, language: Path, shape: Shape) -> None:
        vision = read_vision(folder)
        assert vision is not None
        self.spec = vision.spec
        self.tower = Tower(shape)
        self.tower.load_state_dict(load_file(folder / "model.safetensors"))
        self.language = FrozenLlama(language, dtype=torch.float32)
        self.ids = Ids(load_tokenizer(language))

    @torch.inference_mode()
    def answer(self, style: Style, file: bytes) -> list[int]:
        pixels = torch.from_numpy(preprocess(Image.open(io.BytesIO(file)), self.spec).pixels)
        parts = [self.ids.of(style.head, True), self.ids.of(style.rest(QUESTION))]
        before, after = (self.language.embed[torch.tensor(ids, dtype=torch.long)] for ids in parts)
        slots = self.tower.project(self.tower(pixels[None]))[0]
        return greedy(self.language, torch.cat([before, slots, after]), TOKENS)

    def text(self, text: str) -> tuple[list[int], list[float]]:
        """Ids and their logarithms of probabilities."""
        prompt = self.ids.of(text, True)
        found = greedy(self.language, self.language.embed[torch.tensor(prompt)], TOKENS)
        whole = torch.tensor([prompt + found])
        mask = torch.ones(1, 1, whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
        states = self.language(self.language.embed[whole], torch.arange(whole.shape[1])[None], mask)
        scores = self.language.logits(states).log_softmax(-1)[0, len(prompt) - 1 : -1]
        return found, scores.gather(1, torch.tensor(found)[:, None])[:, 0].tolist()


def config(folder: Path, *, images: bool) -> Config:
    return Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=2000, threads=1),
        multimodal=MultimodalConfig(enable_multimodal=images),
    )


def check(folder: Path, language: Path, shape: Shape, files: list[bytes], count: int) -> tuple[str, Completion]:
    """Prompts of `count` styles with pictures, and one without: this text and its answer."""
    reference = Reference(folder, language, shape)
    template = load_tokenizer(folder).chat_template
    assert template is not None
    asked = [(style, file) for style in styles(template)[:count] for file in files]
    prompts = [style.text.replace("{question}", QUESTION) for style, _ in asked]
    text = prompts[0].replace("<image>\n", "")
    with Engine(config(folder, images=True)) as engine:
        found = engine.generate(prompts, images=[[file] for _, file in asked], max_new_tokens=TOKENS, ignore_eos=True)
        seeing = engine.generate(text, max_new_tokens=TOKENS, ignore_eos=True)[0]
    assert [one.token_ids for one in found] == [reference.answer(style, file) for style, file in asked]
    ids, logprobs = reference.text(text)
    assert seeing.token_ids == ids
    assert seeing.logprobs == pytest.approx(logprobs, abs=5e-4)
    return text, seeing


def test_answers_are_those_of_the_training_program(folder: Path) -> None:
    """And text is answered as by the language model alone."""
    text, seeing = check(folder, folder / "tiny.gguf", SMALL, pictures(), count=5)
    with Engine(config(folder / "tiny.gguf", images=False)) as engine:
        alone = engine.generate(text, max_new_tokens=TOKENS, ignore_eos=True)[0]
    assert (alone.token_ids, alone.logprobs) == (seeing.token_ids, seeing.logprobs)


def test_the_picture_makes_a_difference(folder: Path) -> None:
    reference = Reference(folder, folder / "tiny.gguf", SMALL)
    style = styles("{{ messages[0]['content'] }}")[0]
    assert len({tuple(reference.answer(style, file)) for file in pictures()}) > 1


def test_what_is_served_without_a_model_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo with images asked for, else the language model alone."""
    default = tmp_path / "default.gguf"
    monkeypatch.setattr(default_model, "find_default_model", lambda: default)
    assert default_model.find_model(None, images=True) == default_model.demo_model()
    assert default_model.find_model(None, images=False) == default
    assert default_model.find_model(str(tmp_path), images=True) == tmp_path


def test_inspect_tells_both_halves(folder: Path) -> None:
    report = inspect(folder)
    assert (report.family, report.architecture, report.problems) == ("llama", "llama", [])
    assert "images with --enable-multimodal (clip)" in report.notes
    assert report.chat_template


@pytest.mark.parametrize("name", ["other.gguf", "../tiny.gguf", "/etc/passwd", ""])
def test_a_language_model_that_is_not_there(folder: Path, name: str) -> None:
    write_random(folder, SMALL, name)
    with pytest.raises(ModelError, match="language_model"):
        read_model_config(folder)


def test_a_tower_of_another_width(folder: Path) -> None:
    check_weights(folder)
    write_random(folder, Shape(image=48, width=32, layers=2, heads=2, out=64), "tiny.gguf")
    with pytest.raises(ModelError, match="64, but the language model has 48"):
        check_weights(folder)
