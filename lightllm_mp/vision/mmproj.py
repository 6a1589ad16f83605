"""The `mmproj` file of llama.cpp: vision tower and projector as GGUF, beside the GGUF file of a language model.

Keys are those of the `gguf` library (`clip.*`). Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.gguf_header import read_header
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families import FAMILIES
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys
from lightllm_mp.vision.spec import RGB, Preprocess, VisionModel, VisionSpec
from lightllm_mp.vision.tower_rules import norm, vision_family

ARCHITECTURE = "clip"
DEFAULT_PROJECTOR = "mlp"
Activation = Literal["quick_gelu", "gelu", "silu"]


@dataclass(frozen=True, slots=True)
class MmprojFile(GGUFKeys):
    """The keys of an mmproj file, and the width, levels of DeepStack and tokens of the language model beside it."""

    path: Path
    hidden: int
    deepstack: int
    tokens: list[str]

    @classmethod
    def open(cls, path: Path, model: Path) -> MmprojFile:
        from lightllm_mp.models.checkpoint.gguf import read_gguf  # loads the gguf library

        wanted = ("general.architecture", ".embedding_length", ".n_deepstack_layers", "tokenizer.ggml.tokens")
        header = read_header(model, wanted=lambda key: key.endswith(wanted))
        kind = header["general.architecture"]
        hidden, levels = int(header[f"{kind}.embedding_length"]), int(header.get(f"{kind}.n_deepstack_layers", 0))
        return cls(read_gguf(path), path, hidden, levels, header.get("tokenizer.ggml.tokens") or [])

    def token(self, name: str) -> int | None:
        """Id of a token of the language model."""
        return self.tokens.index(name) if name in self.tokens else None

    def model(self, spec: VisionSpec, family: str) -> VisionModel:
        return VisionModel(spec, family, self.path, self.path, "mmproj_swapped" if self._swapped(spec) else "mmproj")

    def _swapped(self, spec: VisionSpec) -> bool:
        """The converter of LLaVA swaps the names of the two projections of the MLP."""
        down = self.file.tensors.get("v.blk.0.ffn_down.weight")
        return down is not None and down.shape[0] == spec.intermediate and spec.intermediate != spec.width

    def spec(self, **fields: Any) -> VisionSpec:
        """A spec with the sizes that all mmproj files have; `fields` are the others."""
        return VisionSpec(
            width=self.integer("vision.embedding_length"),
            heads=self.integer("vision.attention.head_count"),
            intermediate=self.integer("vision.feed_forward_length"),
            patch=self.integer("vision.patch_size"),
            norm_eps=self.number("vision.attention.layer_norm_epsilon"),
            **fields,
        )

    def rows(self, name: str) -> int:
        """Rows of a matrix. Raises ModelError where it is missing."""
        if not self.has(name):
            raise ModelError(f"missing tensor {name}")
        return self.file.tensors[name].shape[0]

    def activation(self, default: Activation) -> Activation:
        if self.get("use_silu"):
            return "silu"
        return "gelu" if self.get("use_gelu") else default

    def normalisation(self) -> tuple[RGB, RGB]:
        """Mean and standard deviation of the channels."""
        found = []
        for name in ("vision.image_mean", "vision.image_std"):
            if (values := self.get(name)) is None:
                raise KeyError(f"clip.{name}")
            red, green, blue = (float(x) for x in values)
            found.append((red, green, blue))
        return found[0], found[1]

    def dynamic_preprocess(self, min_pixels: int, max_pixels: int) -> Preprocess:
        """For any size of image; the areas hold where the file does not give them."""
        mean, std = self.normalisation()
        return Preprocess(
            mode="dynamic",
            mean=mean,
            std=std,
            min_pixels=self.integer("vision.image_min_pixels", min_pixels),
            max_pixels=self.integer("vision.image_max_pixels", max_pixels),
        )


def beside(model: Path) -> Path | None:
    """The GGUF file in the folder of `model` with mmproj in its name, if any. Raises ModelError for several."""
    files = sorted(file for file in model.parent.glob("*mmproj*.gguf") if file.name != model.name)
    if len(files) > 1:
        raise ModelError(f"{model.parent}: the folder has {len(files)} mmproj files; leave one of them there")
    return files[0] if files else None


def read_mmproj(file: Path, model: Path) -> VisionModel:
    """The vision half in `file` for the language model in `model`."""
    keys = MmprojFile.open(file, model)
    if (found := keys.file.metadata.get("general.architecture")) != ARCHITECTURE:
        raise ModelError(f"GGUF architecture {found!r} is not a vision tower")
    kind = keys.get("projector_type") or keys.get("vision.projector_type") or DEFAULT_PROJECTOR
    towers = [tower for family in FAMILIES if (tower := vision_family(family)) is not None]
    readers = {name: tower.read_gguf for tower in towers if tower.read_gguf for name in tower.projector_types}
    if kind not in readers:
        raise ModelError(f"projector {kind!r} is not supported (supported: {', '.join(readers)})")
    result = readers[kind](keys)
    if result.spec.out != keys.hidden:
        raise ModelError(f"the projector gives embeddings of {result.spec.out}, the language model takes {keys.hidden}")
    if (levels := len(result.spec.deepstack)) != keys.deepstack:
        raise ModelError(f"the tower gives {levels} levels of DeepStack, the language model takes {keys.deepstack}")
    return result


def tower_params(model: VisionModel) -> tuple[Param, ...]:
    """Rules of the tower. The kernels of a patch's frames are separate tensors, stacked along dimension 0 here.

    Layout `mmproj_swapped`: the names of the two projections of the MLP are swapped.
    """
    s, swapped = model.spec, model.layout == "mmproj_swapped"
    kernel, layers = (s.width, 3, s.patch, s.patch), s.norm == "layer"
    names = ("patch_embd.weight", *(f"patch_embd.weight.{i}" for i in range(1, s.temporal)))
    params = [Param("patch", tuple(Piece(name, kernel) for name in names))]
    if s.class_token:
        params.append(Param("class", (Piece("class_embd", (s.width,)),)))
        params.append(Param("positions", (Piece("position_embd.weight", (s.positions + 1, s.width)),)))
        params += norm("pre_norm", "pre_ln", s.width)
    else:
        params += norm("merge_norm", "post_ln", s.width, False)
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    for i in range(s.layers):
        at, to = f"blk.{i}.", f"layers.{i}."
        wide = tuple((name, s.intermediate) for name in (("ffn_gate", up) if s.gated else (up,)))
        params += [
            *norm(to + "input_norm", at + "ln1", s.width, layers),
            *linear(to + "qkv", at, tuple((f"attn_{name}", s.width) for name in "qkv"), s.width, True),
            *linear(to + "o", at, (("attn_out", s.width),), s.width, True),
            *norm(to + "post_norm", at + "ln2", s.width, layers),
            *linear(to + ("gate_up" if s.gated else "up"), at, wide, s.width, True),
            *linear(to + "down", at, ((down, s.width),), s.intermediate, True),
        ]
    return tuple(params)
