"""lightllm_mp: an LLM serving engine made of actors over lock-free shared-memory queues.

`Engine` and `AsyncEngine` are the offline API, `launch` runs a server from another program, `Config` configures all of
them. They are imported at first use, so `import lightllm_mp` is quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightllm_mp.config import Config as Config
    from lightllm_mp.offline import AsyncEngine as AsyncEngine
    from lightllm_mp.offline import ChatChunk as ChatChunk
    from lightllm_mp.offline import ChatCompletion as ChatCompletion
    from lightllm_mp.offline import Completion as Completion
    from lightllm_mp.offline import Engine as Engine
    from lightllm_mp.server import Server as Server
    from lightllm_mp.server import launch as launch

__version__ = "0.1.0"

_OFFLINE = ("AsyncEngine", "ChatChunk", "ChatCompletion", "Completion", "Engine")
_HOMES = {"Config": "config", "Server": "server", "launch": "server", **dict.fromkeys(_OFFLINE, "offline")}
__all__ = ["AsyncEngine", "ChatChunk", "ChatCompletion", "Completion", "Config", "Engine", "Server", "launch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
