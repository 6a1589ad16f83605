"""A visual actor with two towers on a machine without GPUs."""

from __future__ import annotations

import torch

from lightllm_mp.actors.runtime.actor_settings import VisualSettings
from lightllm_mp.actors.visual.actor import VisualActor
from lightllm_mp.models.spec import ModelSpec


class TwoTowers(VisualActor):
    @staticmethod
    def placement(settings: VisualSettings, spec: ModelSpec) -> tuple[list[torch.device], torch.dtype, torch.dtype]:
        devices, dtype, inner = VisualActor.placement(settings, spec)
        return devices * 2, dtype, inner
