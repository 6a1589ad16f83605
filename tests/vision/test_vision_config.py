"""Which folders take pictures, how their weights are found, and what is said when they are not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.vision.digest import content_digest, image_key, model_digest
from lightllm_mp.vision.tower.tower_loader import load_encoder, load_weights
from lightllm_mp.vision.vision_config import read_vision
from tests.vision.vision_golden import FOLDERS, GOLDENS, cases, model, prepared

TOWER = "clip-vit-large-patch14-56"


def copied(name: str, to: Path) -> Path:
    folder = to / name
    folder.mkdir()
    for file in (GOLDENS / name).glob("*"):
        if file.name.startswith(("config", "preprocessor", "model")):
            shutil.copyfile(file, folder / file.name)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, folder / "model.safetensors")


def same_as_golden(folder: Path, name: str) -> bool:
    found = read_vision(folder)
    assert found is not None
    image = prepared(cases(name)[0])
    tower = load_encoder(found, dtype=torch.float32)
    golden = load_encoder(model(name), dtype=torch.float32)
    return torch.equal(tower.encode([image])[0], golden.encode([image])[0])


def test_kinds() -> None:
    assert [model(name).family for name in FOLDERS] == list(FOLDERS)
    kinds = ["clip", "clip", "qwen_vl", "qwen2_5_vl", *["qwen3_vl"] * 4, "pixtral", "pixtral", "siglip", "gemma4"]
    assert [model(name).spec.kind for name in FOLDERS] == kinds
    assert [model(name).spec.preprocess.pad for name in FOLDERS] == [True, *[False] * 11]


@pytest.mark.parametrize("name", ["llama", "qwen", "qwen2"])
def test_models_of_text_only(name: str) -> None:
    assert read_vision(GOLDENS / name) is None
    assert read_vision(GOLDENS / name / "config.json") is None


def test_a_language_model_without_its_tower(tmp_path: Path) -> None:
    config = json.loads((GOLDENS / "qwen3_5" / "config.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config["model_type"] == "qwen3_5_text"
    assert read_model_config(tmp_path).family == "qwen3_5"
    assert read_vision(tmp_path) is None


@pytest.mark.parametrize("said", [f"./{TOWER}", f"openai/{TOWER}", TOWER])
def test_where_a_tower_may_be(tmp_path: Path, said: str) -> None:
    folder = copied("llava_orig", tmp_path)
    copied(TOWER, folder if said.startswith("./") else tmp_path)
    change_config(folder, mm_vision_tower=said)
    assert same_as_golden(folder, "llava_orig")


@pytest.mark.parametrize("said", [f"../{TOWER}", f"x/../../{TOWER}", "..", "/etc", "FOLDER"])
def test_a_tower_elsewhere_is_not_read(tmp_path: Path, said: str) -> None:
    """Not even one that is where it says: a model's author does not choose which files of the machine are read."""
    folder, tower = copied("llava_orig", tmp_path), copied(TOWER, tmp_path)
    (folder / "x").mkdir()
    change_config(folder, mm_vision_tower=said.replace("FOLDER", str(tower)))
    with pytest.raises(ModelError, match="leads out of the model folder: name the tower's folder without a path"):
        read_vision(folder)


def test_a_tower_that_is_not_there(tmp_path: Path) -> None:
    folder = copied("llava_orig", tmp_path)
    with pytest.raises(ModelError, match="put its folder inside or beside the model folder"):
        read_vision(folder)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llava_orig", {"image_aspect_ratio": "anyres"}, "anyres"),
        ("llava_orig", {"mm_projector_type": "ldp"}, "mm_projector_type 'ldp'"),
        ("llava_orig", {"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ("llava_orig", {"mm_vision_select_layer": -9}, "feature layer -9"),
        ("llava_orig", {"mm_vision_select_feature": "all"}, "feature selection 'all'"),
        ("llava_hf", {"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
        ("llava_hf", {"vision_feature_layer": [-2, -5]}, "a value of the vision tower cannot be used"),
        ("llava_hf", {"vision_config": {"image_size": 28}}, "makes images of 56 pixels"),
        ("qwen_vl", {"visual": {"width": 32}}, "is missing"),
        ("qwen2_5_vl", {"vision_config": None}, "cannot be used"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    folder = copied(name, tmp_path)
    copied(TOWER, tmp_path)
    change_config(folder, **changes)
    with pytest.raises(ModelError, match=said):
        read_vision(folder)


def test_a_tower_without_preprocessing_takes_clips(tmp_path: Path) -> None:
    folder, tower = copied("llava_orig", tmp_path), copied(TOWER, tmp_path)
    (tower / "preprocessor_config.json").unlink()
    found = read_vision(folder)
    assert found is not None
    assert found.spec == model("llava_orig").spec


def test_a_whole_clip_model_as_tower(tmp_path: Path) -> None:
    """OpenAI's folders hold a text model too, and the vision model's configuration one level down."""
    folder, tower = copied("llava_orig", tmp_path), copied(TOWER, tmp_path)
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))
    change_tensors(tower, lambda t: t | {"text_model.final.weight": torch.ones(3), "logit_scale": torch.ones(1)})
    assert same_as_golden(folder, "llava_orig")


@pytest.mark.parametrize("name", FOLDERS)
def test_bin_files(tmp_path: Path, name: str) -> None:
    folder = copied(name, tmp_path)
    for each in {folder, copied(TOWER, tmp_path)}:
        torch.save(load_file(each / "model.safetensors"), each / "pytorch_model.bin")
        (each / "model.safetensors").unlink()
    assert same_as_golden(folder, name)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("llava_hf", "vision_tower.vision_model.", "model.vision_tower."),
        ("llava_hf", "multi_modal_projector.", "model.multi_modal_projector."),
        ("qwen2_5_vl", "visual.", "model.visual."),
    ],
)
def test_names_of_other_releases(tmp_path: Path, name: str, old: str, new: str) -> None:
    folder = copied(name, tmp_path)
    change_tensors(folder, lambda t: {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in t.items()})
    assert same_as_golden(folder, name)


def test_a_linear_projector(tmp_path: Path) -> None:
    folder = copied("llava_orig", tmp_path)
    copied(TOWER, tmp_path)
    change_config(folder, mm_projector_type="linear")

    def one_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: tensor for name, tensor in tensors.items() if ".mm_projector." not in name}
        first = {f"model.mm_projector.{end}": tensors[f"model.mm_projector.0.{end}"] for end in ("weight", "bias")}
        return kept | first

    change_tensors(folder, one_layer)
    found, image = read_vision(folder), prepared(cases("llava_orig")[0])
    assert found is not None
    assert found.spec.projector_layers == 1
    weights = load_weights(found, dtype=torch.float32)
    whole = load_weights(model("llava_orig"), dtype=torch.float32)
    assert weights.keys() == whole.keys() - {"projector.1", "projector.1.bias"}
    tower = load_encoder(found, dtype=torch.float32)
    assert tower.encode([image])[0].shape == (16, 64)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llava_orig", "model.mm_projector.2.bias"),
        ("llava_hf", "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"),
        ("llava_hf", "vision_tower.vision_model.embeddings.patch_embedding.weight"),
        ("qwen_vl", "transformer.visual.attn_pool.query"),
        ("qwen2_5_vl", "visual.merger.ln_q.weight"),
    ],
)
def test_missing_surplus_and_misshapen_tensors(tmp_path: Path, name: str, tensor: str) -> None:
    prefix = tensor.rpartition(".")[0]
    for change, said in (
        (lambda t: {k: v for k, v in t.items() if k != tensor}, "missing tensor"),
        (lambda t: t | {f"{prefix}.surplus": torch.ones(2)}, "unexpected tensor"),
        (lambda t: t | {tensor: torch.cat([t[tensor], t[tensor]])}, "has shape"),
    ):
        folder = copied(name, tmp_path)
        copied(TOWER, tmp_path)
        change_tensors(folder, change)
        found = read_vision(folder)
        assert found is not None
        with pytest.raises(ModelError, match=said):
            load_encoder(found, dtype=torch.float32)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / TOWER)


def test_weights_that_nobody_trained(tmp_path: Path) -> None:
    """No weight file is read, and the shapes are those of the trained ones."""
    for name in FOLDERS:
        folder = copied(name, tmp_path)
        if not (tmp_path / TOWER).exists():
            (copied(TOWER, tmp_path) / "model.safetensors").unlink()
        (folder / "model.safetensors").unlink()
        found = read_vision(folder)
        assert found is not None
        made = load_weights(found, dtype=torch.bfloat16, load_format="dummy")
        read = load_weights(model(name), dtype=torch.bfloat16)
        assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in read.items()}
        tower = load_encoder(found, dtype=torch.bfloat16, load_format="dummy")
        trained = load_encoder(model(name), dtype=torch.bfloat16)
        image = prepared(cases(name)[0])
        assert torch.isfinite(tower.encode([image])[0]).all()
        assert tower.nbytes == trained.nbytes


def test_digests() -> None:
    content, spec = content_digest(b"image"), model("llava_orig").spec
    digest = model_digest(spec, "llava", "float16")
    keys = {
        image_key(content, digest),
        image_key(content, digest, b"tenant"),
        image_key(content_digest(b"other"), digest),
        image_key(content, model_digest(spec, "llava", "float32")),
        image_key(content, model_digest(spec, "other", "float16")),
        image_key(content, model_digest(model("llava_hf").spec, "llava", "float16")),
    }
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}
    assert image_key(content, digest) == image_key(content_digest(b"image"), model_digest(spec, "llava", "float16"))


def test_the_prompt_side_brings_no_torch() -> None:
    names = ("spec", "vision_config", "sizing", "header", "digest", "placeholders", "tower_rules", "tower.patch_layout")
    program = f"""
import sys
for name in {names}: __import__("lightllm_mp.vision." + name)
assert not {{"torch", "PIL", "transformers"}} & set(sys.modules)
import lightllm_mp.vision.preprocess, lightllm_mp.vision.decode
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
