"""The part that is trained: a CLIP-like tower and LLaVA's projector, under the names of LLaVA's files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes; the default has 6.9 million parameters and 144 slots a picture.

    Patches are small because a ViT that begins at random learns shapes far sooner from them: after 12,000 pictures of
    single things 41 % of patches told the shape with patches of 8 and 36 % with patches of 16, as many of them.
    """

    image: int = 96
    patch: int = 8
    width: int = 256
    layers: int = 8
    heads: int = 4
    out: int = 576
    """Hidden size of the language model."""

    @property
    def grid(self) -> int:
        return self.image // self.patch


class Tower(nn.Module):
    """Pixels [pictures, 3, image, image] -> what the last layer gives for the patches, [pictures, grid ** 2, width]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, positions = shape.width, shape.grid**2 + 1
        embeddings = nn.Module()
        embeddings.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        embeddings.patch_embedding = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        embeddings.position_embedding = nn.Embedding(positions, width)
        with torch.no_grad():
            embeddings.position_embedding.weight[0] = 0
            embeddings.position_embedding.weight[1:] = waves(shape.grid, width)
        model = nn.Module()
        model.embeddings = embeddings
        model.pre_layrnorm = nn.LayerNorm(width)
        model.encoder = nn.Module()
        model.encoder.layers = nn.ModuleList(TowerLayer(shape) for _ in range(shape.layers))
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = model
        self.multi_modal_projector = nn.Module()
        self.multi_modal_projector.linear_1 = nn.Linear(width, shape.out)
        self.multi_modal_projector.linear_2 = nn.Linear(shape.out, shape.out)

    def forward(self, pixels: Tensor) -> Tensor:
        model = self.vision_tower.vision_model
        patches = model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = model.embeddings.class_embedding.to(patches.dtype).expand(len(pixels), 1, -1)
        x = torch.cat([first, patches], dim=1) + model.embeddings.position_embedding.weight
        x = model.pre_layrnorm(x)
        for layer in model.encoder.layers:
            x = layer(x)
        return x[:, 1:]

    def project(self, features: Tensor) -> Tensor:
        """[..., width] -> [..., out]"""
        head = self.multi_modal_projector
        return head.linear_2(F.gelu(head.linear_1(features)))


def waves(grid: int, width: int) -> Tensor:
    """[grid ** 2, width]: sines and cosines of a patch's row and column, of a wavelength from a half to eight times the
    picture's edge. Of small random positions, places and relations are learned many times later."""
    angle = torch.outer(torch.arange(grid) / grid, 4 * torch.pi / 16 ** torch.linspace(0, 1, width // 4))
    rows, columns = angle.repeat_interleave(grid, 0), angle.repeat(grid, 1)
    return 0.7 * torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)


class TowerLayer(nn.Module):
    """Attention and MLP of four times the width, norms before them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.self_attn.add_module(name, nn.Linear(width, width))
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a, normed = self.self_attn, self.layer_norm1(x)
        q, k, v = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (a.q_proj, a.k_proj, a.v_proj)
        )
        x = x + a.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.layer_norm2(x))))


def write_model(folder: Path, tower: Tower, language_model: str = "default") -> None:
    """The folder that `lightllm-mp serve` reads, weights in float16. A file is whole at any moment."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tower.state_dict().items()
    }
    for name, value in (
        ("config.json", config(tower.shape, language_model)),
        ("preprocessor_config.json", steps(tower.shape)),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    part = folder / "model.safetensors.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, folder / "model.safetensors")


def config(shape: Shape, language_model: str) -> dict[str, Any]:
    """`config.json` of a Hugging Face LLaVA whose language model lies elsewhere."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "language_model": language_model,
        "text_config": {"model_type": "llama", "hidden_size": shape.out},
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": shape.image,
            "patch_size": shape.patch,
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "torch_dtype": "float16",
    }


def steps(shape: Shape) -> dict[str, Any]:
    """`preprocessor_config.json`: onto a square of the mean colour, then resized."""
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": shape.image},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": shape.image, "width": shape.image},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
