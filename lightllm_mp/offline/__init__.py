"""The Python API: `Engine` and `AsyncEngine` run the actors of the server without an HTTP port, only for the calling
program.

    with Engine() as engine:
        for answer in engine.generate(["What is AI?", "Name a colour."], max_new_tokens=32):
            print(answer.text)

The parameters are those of `/generate`, and the fields of OpenAI's API that constrain an answer (docs/apis.md).
"""

from __future__ import annotations

from lightllm_mp.offline.answers import ChatChunk, ChatCompletion, Completion
from lightllm_mp.offline.async_engine import AsyncEngine
from lightllm_mp.offline.engine import Engine
from lightllm_mp.offline.engine_thread import EngineEnded

__all__ = ["AsyncEngine", "ChatChunk", "ChatCompletion", "Completion", "Engine", "EngineEnded"]
