"""The visual actor's decoder processes (vision/decoder_process.py): a bad image costs one process and its request.

Processes, not threads, because only a process can be killed while it decodes too long or crashes, and only a process
can be confined. Its code may be that of an attacker. So its answers are of a closed type and say no sizes, and the
memory that it shares is read and written with system calls: whatever it does to that memory is an error here, never a
SIGBUS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys

import msgspec
import numpy as np

from lightllm_mp.actors.runtime.launch_spec import child_environment
from lightllm_mp.errors import EngineError, InvalidRequest, Overloaded, PayloadTooLarge, UnsupportedMedia
from lightllm_mp.shm import Segment
from lightllm_mp.vision.decoder_process import Confined, DecodeTask, Done, Settings
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import patch_grid, pixel_shape
from lightllm_mp.vision.spec import VisionSpec

log = logging.getLogger("lightllm_mp.visual")

PROGRAM = "lightllm_mp.vision.decoder_process"
SECONDS = 20.0
"""Most seconds to decode one image, the process's start included."""
SLACK = 4 << 20
"""Extra bytes of pixels for dynamic sizes, because edges are rounded."""
ENVIRONMENT = ("PATH", "LANG", "PYTHON", "LC_", "LD_", "OPENBLAS_")
"""Beginnings of the names of environment variables that a decoder gets. No other one: there are keys among them."""


class DecoderProcess:
    """One decoder process, started at its first use, and again after it was killed."""

    def __init__(self, settings: Settings, program: str = PROGRAM) -> None:
        self.missing: tuple[str, ...] = ()
        """Layers that the confinement of the process lacks."""
        self._spec, self._program = settings.spec, program
        self._settings = msgspec.json.encode(settings).decode()
        # Pages are reserved before each image, as many as it needs.
        self._memory = Segment.create("pixels", max(settings.max_bytes, _pixel_bytes(settings.spec)), sparse=True)
        self._process: asyncio.subprocess.Process | None = None
        self._confined, self._done = msgspec.json.Decoder(Confined), msgspec.json.Decoder(Done)
        self._is_new = True
        """The process has not said yet that it is ready."""

    async def decode(self, data: bytes, width: int, height: int) -> Preprocessed:
        """The preprocessed pixels. Raises EngineError for an image that cannot be used."""
        grid = patch_grid(self._spec, width, height)
        pixels = np.empty(pixel_shape(self._spec, grid), np.float32)
        self._put(data, pixels.nbytes)
        try:
            async with asyncio.timeout(SECONDS):
                done = await self._ask(DecodeTask(len(data), width, height))
        except TimeoutError:
            await self.end()
            raise InvalidRequest(f"an image took longer than {SECONDS:g} s to decode") from None
        except BaseException:
            await self.end()
            raise
        if done is None:
            await self.end()
            raise InvalidRequest("an image cannot be decoded")
        if done.code:
            raise _error(done)
        if os.preadv(self._memory.fd, [pixels.data], 0) != pixels.nbytes or not math.isfinite(np.ptp(pixels)):
            await self.end()
            raise InvalidRequest("an image cannot be decoded")
        return Preprocessed(pixels, grid)

    def _put(self, data: bytes, pixel_bytes: int) -> None:
        """Reserves memory for the file and its pixels, and writes the file."""
        size = max(len(data), pixel_bytes)
        if size > self._memory.size:
            raise PayloadTooLarge("an image becomes too large")
        if not self._memory.back(0, size):
            raise Overloaded("there is too little memory to decode an image", retry_after=1.0)
        os.pwrite(self._memory.fd, data, 0)

    async def _ask(self, task: DecodeTask) -> Done | None:
        """The process's reply; None: the process is gone, or says what no decoder says."""
        process = self._process or await self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdin.drain()
            if self._is_new:
                self.missing = self._confined.decode(await process.stdout.readline()).missing
                self._is_new = False
            return self._done.decode(await process.stdout.readline())
        except (OSError, ValueError) as error:  # it ended; a line too long; msgspec's errors are ValueErrors
            log.warning("a decoder process is replaced: %s", type(error).__name__)
            return None

    async def start(self) -> asyncio.subprocess.Process:
        self._is_new = True
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._program,
            str(self._memory.fd),
            self._settings,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._memory.fd,),
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


class DecoderPool:
    """`size` decoder processes; further calls wait for a free one."""

    def __init__(self, settings: Settings, size: int) -> None:
        self.size = size
        self._all = [DecoderProcess(settings) for _ in range(size)]
        self._free = list(self._all)
        self._turn = asyncio.Semaphore(size)
        self._has_warned = False

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
                self._warn(decoder)

    def _warn(self, decoder: DecoderProcess) -> None:
        if decoder.missing and not self._has_warned:
            self._has_warned = True
            log.warning(
                "image files are decoded without %s: the kernel or the container refuses it; see lightllm-mp doctor",
                " and ".join(decoder.missing),
            )

    async def close(self) -> None:
        for decoder in self._all:
            await decoder.close()


def _environment() -> dict[str, str]:
    passed = {name: value for name, value in child_environment().items() if name.startswith(ENVIRONMENT)}
    return {**passed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _pixel_bytes(spec: VisionSpec) -> int:
    steps = spec.preprocess
    if steps.mode == "dynamic":
        return 4 * 3 * spec.temporal * steps.max_pixels + SLACK
    return 4 * 3 * steps.size * steps.size


def _error(done: Done) -> EngineError:
    kind = next((k for k in (PayloadTooLarge, UnsupportedMedia) if k.code == done.code), InvalidRequest)
    return kind(done.message, param="multimodal_params")
