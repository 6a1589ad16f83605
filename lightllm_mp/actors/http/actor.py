"""The HTTP actor: the front with a port. It serves from its first moment, 503 until the engine has begun."""

from __future__ import annotations

import asyncio
import os
import socket

from lightllm_mp.actors.birth import Birth
from lightllm_mp.actors.front import FrontActor
from lightllm_mp.actors.http.app import create_app
from lightllm_mp.actors.http.auth import load_keys
from lightllm_mp.actors.http.port import serve
from lightllm_mp.actors.http.tls import server_context
from lightllm_mp.actors.mailbox import Mailbox
from lightllm_mp.actors.stats import StatsPage
from lightllm_mp.messages import Facts


class HttpActor(FrontActor):
    def __init__(self, birth: Birth, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(birth, mailbox, stats)
        self._config = birth.config
        self._listen_fd = birth.listen_fd

    def start(self) -> Facts:
        self._keys = load_keys(self._config.http, os.environ)
        self._tls = server_context(self._config.http)
        return Facts()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.listen()
        app = create_app(
            self.frontend,
            self._config.http,
            model=self._config.model,
            multimodal=self._config.multimodal,
            stats=self.all_stats,
            keys=self._keys,
        )
        port = await serve(app, socket.socket(fileno=self._listen_fd), self._config.http, tls=self._tls)
        try:
            await self.until_stopped()
        finally:
            await port.close()
