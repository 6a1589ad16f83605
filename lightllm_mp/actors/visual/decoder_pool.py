"""The visual actor's decoder processes (vision/decoder_process.py): a bad image costs one process and its request.

Processes, not threads, because only a process can be killed while it decodes too long or crashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import sys

import msgspec
import numpy as np

from lightllm_mp.actors.runtime.launch_spec import child_environment
from lightllm_mp.errors import EngineError, InvalidRequest, PayloadTooLarge, UnsupportedMedia
from lightllm_mp.shm.memfd import create_memfd
from lightllm_mp.vision.decoder_process import DecodeTask, Done, Settings
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import PatchGrid
from lightllm_mp.vision.spec import VisionSpec

log = logging.getLogger("lightllm_mp.visual")

SECONDS = 20.0
"""Most seconds to decode one image, the process's start included."""
SLACK = 4 << 20
"""Extra bytes of pixels for dynamic sizes, because edges are rounded."""


class DecoderProcess:
    """One decoder process, started at its first use, and again after it was killed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = msgspec.json.encode(settings).decode()
        self._fd = create_memfd("pixels")
        os.ftruncate(self._fd, max(settings.max_bytes, _pixel_bytes(settings.spec)))  # pages are allocated on first use
        self._memory = mmap.mmap(self._fd, 0)
        self._process: asyncio.subprocess.Process | None = None
        self._done = msgspec.json.Decoder(Done)

    async def decode(self, data: bytes, width: int, height: int) -> Preprocessed:
        """The preprocessed pixels. Raises EngineError for an image that cannot be used."""
        try:
            async with asyncio.timeout(SECONDS):
                done = await self._ask(data, DecodeTask(len(data), width, height))
        except TimeoutError:
            await self.end()
            raise InvalidRequest(f"an image took longer than {SECONDS:g} s to decode") from None
        except BaseException:
            await self.end()
            raise
        if done is None:
            await self.end()
            raise InvalidRequest("an image cannot be decoded")
        if done.status:
            raise _error(done)
        count = int(np.prod(done.shape))
        return Preprocessed(
            np.frombuffer(self._memory, np.float32, count).reshape(done.shape).copy(), PatchGrid(*done.grid)
        )

    async def _ask(self, data: bytes, task: DecodeTask) -> Done | None:
        """The process's reply; None: the process is gone."""
        process = self._process or await self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        self._memory[: len(data)] = data
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        except (ConnectionError, BrokenPipeError):
            line = b""
        return self._done.decode(line) if line.endswith(b"\n") else None

    async def start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "lightllm_mp.vision.decoder_process",
            str(self._fd),
            self._settings,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._fd,),
            env=_environment(),
        )
        return self._process

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def close(self) -> None:
        await self.end()
        self._memory.close()
        os.close(self._fd)


class DecoderPool:
    """`size` decoder processes; further calls wait for a free one."""

    def __init__(self, settings: Settings, size: int) -> None:
        self.size = size
        self._all = [DecoderProcess(settings) for _ in range(size)]
        self._free = list(self._all)
        self._turn = asyncio.Semaphore(size)

    async def start(self) -> None:
        """Start all processes without waiting until they are ready."""
        for decoder in self._all:
            await decoder.start()

    async def decode(self, data: bytes, width: int, height: int) -> Preprocessed:
        async with self._turn:
            decoder = self._free.pop()
            try:
                return await decoder.decode(data, width, height)
            finally:
                self._free.append(decoder)

    async def close(self) -> None:
        for decoder in self._all:
            await decoder.close()


def _environment() -> dict[str, str]:
    """The child environment without LIGHTLLM_MP_ variables, because one of them holds the API keys."""
    ours = {name: value for name, value in child_environment().items() if not name.startswith("LIGHTLLM_MP_")}
    return {**ours, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _pixel_bytes(spec: VisionSpec) -> int:
    steps = spec.preprocess
    if steps.mode == "dynamic":
        return 4 * 3 * spec.temporal * steps.max_pixels + SLACK
    return 4 * 3 * steps.size * steps.size


def _error(done: Done) -> EngineError:
    kind = next((k for k in (PayloadTooLarge, UnsupportedMedia) if k.code == done.code), InvalidRequest)
    return kind(done.message, param="multimodal_params")
