"""A client that leaves while its picture is being downloaded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

from lightllm_mp.actors.http.app import create_app
from lightllm_mp.actors.http.sockets.listener import serve
from lightllm_mp.config import HttpConfig, ModelConfig
from tests.actors.front.test_image_files import Way, seeing_front
from tests.actors.visual.seeing import png

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(png(1)) + png(1)[:500]


async def disconnect() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HALF)
        asked.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        left.set()
        writer.close()

    way, config = Way(allow_media_host=("127.0.0.1",), media_timeout=60.0), HttpConfig(port=0)
    frontend, lanes = seeing_front(way)
    app = create_app(frontend, config, model=ModelConfig(), multimodal=way.settings, stats=dict)
    images = await asyncio.start_server(host, "127.0.0.1", 0)
    port = await serve(app, socket.create_server(("127.0.0.1", 0)), config)
    url = f"http://127.0.0.1:{images.sockets[0].getsockname()[1]}/x.png"
    body = json.dumps({"inputs": "<image>", "multimodal_params": {"images": [{"type": "url", "data": url}]}}).encode()
    _, writer = await asyncio.open_connection(*port.address)
    try:
        writer.write(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await asked.wait()
        while not way.lane.files.size:
            await asyncio.sleep(0.005)
        writer.transport.abort()
        await left.wait()  # the download has been stopped
        while way.lane.files.size:
            await asyncio.sleep(0.005)
        assert (frontend.live, lanes.tokenizer, way.sent, way.lent) == (0, [], [], {})
    finally:
        images.close()
        await port.close()


def test_its_download_is_stopped_and_nothing_is_held() -> None:
    asyncio.run(asyncio.wait_for(disconnect(), 20))
