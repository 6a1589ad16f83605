"""What each actor gets of the configuration. The supervisor derives these once and passes them in the launch spec.

An actor that needs most of a part of `Config` gets that part; the others get the values that they read.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from lightllm_mp.actors.topology import DETOKENIZER, GUIDE, HTTP, ROUTER, TOKENIZER, VISUAL, rank_group
from lightllm_mp.config import Config, EngineConfig, HttpConfig, ModelConfig, MultimodalConfig


class FrontSettings(Struct, frozen=True, array_like=True, tag=True):
    """Of the HTTP actor, and of the engine inside another program."""

    http: HttpConfig
    model: ModelConfig
    images: MultimodalConfig
    drain_delay: float
    """Seconds."""


class WorkerSettings(Struct, frozen=True, array_like=True, tag=True):
    """Of a rank, and of another machine with ranks."""

    model: ModelConfig
    engine: EngineConfig
    watchdog_timeout: float
    """Seconds."""


class VisualSettings(Struct, frozen=True, array_like=True, tag=True):
    model: ModelConfig
    images: MultimodalConfig
    threads: int
    """Compute threads on a CPU; 0: found out."""


class TokenizerSettings(Struct, frozen=True, array_like=True, tag=True):
    model: ModelConfig


class DetokenizerSettings(Struct, frozen=True, array_like=True, tag=True):
    tokenizer_mode: str
    skip_special_tokens: bool
    """Unless a request says otherwise."""
    traced: bool
    """Somebody collects the times of requests."""


class GuideSettings(Struct, frozen=True, array_like=True, tag=True):
    tokenizer_mode: str


class RouterSettings(Struct, frozen=True, array_like=True, tag=True):
    workers: tuple[str, ...]
    """Whom it sends the plans: ranks, and other machines with ranks."""
    share_prompt_cache: bool
    traced: bool


ActorSettings: TypeAlias = (
    FrontSettings
    | WorkerSettings
    | VisualSettings
    | TokenizerSettings
    | DetokenizerSettings
    | GuideSettings
    | RouterSettings
)


def front_settings(config: Config) -> FrontSettings:
    return FrontSettings(config.http, config.model, config.multimodal, config.supervisor.drain_delay)


def child_settings(config: Config) -> dict[str, ActorSettings]:
    """The settings of every process by its name, as in `topology`."""
    model, engine = config.model, config.engine
    traced = config.http.otlp_traces_endpoint is not None
    workers = tuple(child.name for child in rank_group(engine.tp, engine.nnodes))
    return {
        **dict.fromkeys(workers, WorkerSettings(model, engine, config.supervisor.watchdog_timeout)),
        GUIDE: GuideSettings(model.tokenizer_mode),
        ROUTER: RouterSettings(workers, engine.share_prompt_cache, traced),
        DETOKENIZER: DetokenizerSettings(model.tokenizer_mode, not config.http.no_skipping_special_tokens, traced),
        TOKENIZER: TokenizerSettings(model),
        VISUAL: VisualSettings(model, config.multimodal, engine.threads),
        HTTP: front_settings(config),
    }
