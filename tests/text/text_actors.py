"""Tokenizer and detokenizer actors inside the test, and what they post."""

from __future__ import annotations

from pathlib import Path

from lightllm_mp.actors.detokenizer import DetokenizerActor
from lightllm_mp.actors.runtime.actor_settings import child_settings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.topology import DETOKENIZER, TOKENIZER
from lightllm_mp.config import Config
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import Begin, Wire
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.vision.spec import VisionModel
from tests.paths import GOLDENS

FRONT = "front"


class Outbox:
    """A mailbox that keeps what is posted."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Wire]] = []

    def post(self, peer: str, message: Wire) -> None:
        self.posted.append((peer, message))


def started(
    kind: type,
    path: Path,
    outbox: Outbox,
    facts: Facts,
    *,
    config: Config | None = None,
    vision: VisionModel | None = None,
):
    """An actor of this kind whose text files lie at `path`. Returns it and the facts that it found."""
    name = DETOKENIZER if issubclass(kind, DetokenizerActor) else TOKENIZER
    launch = LaunchSpec(
        name="it",
        program="it",
        rank=0,
        front=FRONT,
        ring="auto",
        settings=child_settings(config or Config())[name],
        log_level="warning",
        log_json=False,
        model=ModelDescription(str(path), read_model_config(GOLDENS / "llama"), vision),
        bell=(-1, -1),
        peers=(),
        stats=-1,
    )
    actor = kind(launch, outbox, None)
    actor.on_begin(Begin(0, facts))
    return actor, actor.facts


def started_without_files(kind: type, folder: Path, outbox: Outbox):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return started(kind, folder, outbox, Facts(engine=EngineLimits(max_input=100), eos_ids=(2,)))
