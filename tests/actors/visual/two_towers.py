"""A visual actor with two towers on a machine without GPUs."""

from __future__ import annotations

import torch

from lightllm_mp.actors.visual.actor import VisualActor


class TwoTowers(VisualActor):
    def _placed(self) -> tuple[list[torch.device], torch.dtype, torch.dtype]:
        devices, dtype, inner = super()._placed()
        return devices * 2, dtype, inner
