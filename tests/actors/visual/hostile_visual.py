"""A visual actor whose decoders are hostile."""

from __future__ import annotations

from lightllm_mp.actors.visual.actor import VisualActor


class HostileVisual(VisualActor):
    DECODER = "tests.actors.visual.decoders.hostile"
