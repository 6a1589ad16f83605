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
from lightllm_mp.errors import (
    EngineError,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    StartupError,
    UnsupportedMedia,
)
from lightllm_mp.sandbox import SECCOMP, Layer
from lightllm_mp.shm import Segment
from lightllm_mp.vision.decoder_process import Confined, DecodeTask, Done, Settings
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import PatchGrid, patch_grid, pixel_shape
from lightllm_mp.vision.spec import VisionSpec

log = logging.getLogger("lightllm_mp.visual")

PROGRAM = "lightllm_mp.vision.decoder_process"
UNUSABLE = "an image cannot be decoded"
REMEDY = f"{SECCOMP}=0 in the environment leaves the filter of system calls out"
SECONDS = 20.0
"""Most seconds to decode one image, the process's start included."""
VIDEO_SECONDS = 60.0
"""The same for a video, all of whose frames are decoded."""
START_SECONDS = 60.0
"""Most seconds until the process that is tried at start is ready."""
SLACK = 4 << 20
"""Extra bytes of pixels for dynamic sizes, because edges are rounded."""
ENVIRONMENT = ("PATH", "LANG", "PYTHON", "LC_", "LD_", "OPENBLAS_", SECCOMP)
"""Beginnings of the names of environment variables that a decoder gets. No other one: there are keys among them."""


class DecoderProcess:
    """One decoder process, started at its first use, and again after it was killed."""

    def __init__(self, settings: Settings, program: str = PROGRAM) -> None:
        self._spec, self._program = settings.spec, program
        self._settings = msgspec.json.encode(settings).decode()
        # Pages are reserved before each image, as many as it needs.
        self._memory = Segment.create("pixels", max(settings.max_bytes, _pixel_bytes(settings.spec)), sparse=True)
        self._reserved = 0
        self._process: asyncio.subprocess.Process | None = None
        self._confined: Confined | None = None
        """The first line of the process; None: it was not read."""
        self.restarts = -1
        """Processes that replaced another one."""

    async def decode(self, data: bytes, width: int, height: int, video: PatchGrid | None = None) -> Preprocessed:
        """The preprocessed pixels of an image, or of a video with this grid. Raises EngineError for one that cannot be
        used."""
        grid = video or patch_grid(self._spec, width, height)
        pixels = np.empty(pixel_shape(self._spec, grid), np.float32)
        self._put(data, pixels.nbytes)
        what, seconds = ("an image", SECONDS) if video is None else ("a video", VIDEO_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                done = await self._ask(DecodeTask(len(data), width, height, video is not None))
        except TimeoutError:
            await self.end()
            raise InvalidRequest(f"{what} took longer than {seconds:g} s to decode") from None
        except BaseException:
            await self.end()
            raise
        if done.code:
            raise _error(done)
        if os.preadv(self._memory.fd, [pixels.data], 0) != pixels.nbytes or not math.isfinite(np.ptp(pixels)):
            await self.end()
            raise InvalidRequest(UNUSABLE)
        return Preprocessed(pixels, grid)

    def _put(self, data: bytes, pixel_bytes: int) -> None:
        """Reserves memory for the file and its pixels, and writes the file."""
        size = max(len(data), pixel_bytes)
        if size > self._memory.size:
            raise PayloadTooLarge("an image becomes too large")
        if size > self._reserved:
            if not self._memory.back(self._reserved, size - self._reserved):
                raise Overloaded("there is too little memory to decode an image", retry_after=1.0)
            self._reserved = size
        os.pwrite(self._memory.fd, data, 0)

    async def _ask(self, task: DecodeTask) -> Done:
        """The reply of the process. InvalidRequest if it ends, or says what no decoder says."""
        process = await self._ready()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdin.drain()
            return msgspec.json.decode(await process.stdout.readline(), type=Done)
        except (OSError, ValueError) as error:  # it ended; a line is too long; msgspec's errors are ValueErrors
            log.warning("a decoder process is replaced: %s", type(error).__name__)
            raise InvalidRequest(UNUSABLE) from None

    async def missing_layers(self) -> tuple[Layer, ...]:
        """Waits until the process is ready. The layers that its confinement lacks; StartupError if it does not work."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready()
        except TimeoutError:
            raise StartupError(f"the image decoder is not ready after {START_SECONDS:g} s") from None
        assert self._confined is not None
        return self._confined.missing

    async def _ready(self) -> asyncio.subprocess.Process:
        """The process, confined. One that ended before it saw an image is replaced once; then StartupError."""
        for _ in range(2):
            process = self._process
            if process is None or process.returncode is not None:
                await self.end()
                process = await self.start()
            if self._confined is None:
                assert process.stdout is not None
                with contextlib.suppress(OSError, ValueError):
                    self._confined = msgspec.json.decode(await process.stdout.readline(), type=Confined)
            if self._confined is None:
                await self.end()
                continue
            if self._confined.problem:
                raise StartupError(f"the confined image decoder does not work: {self._confined.problem}; {REMEDY}")
            return process
        raise StartupError(f"the image decoder ends at its start; {REMEDY}")

    async def start(self) -> asyncio.subprocess.Process:
        """Starts a process without waiting until it is ready. Overloaded if the kernel refuses a process."""
        self._confined = None
        try:
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
        except OSError as error:
            raise Overloaded(f"the image decoder cannot be started: {error.strerror}", retry_after=1.0) from None
        self.restarts += 1
        return self._process

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert process.stdout is not None
        # `wait` ends when the pipe does, and nobody reads a pipe that has filled its buffer.
        with contextlib.suppress(RuntimeError):  # another task reads it
            await process.stdout.read()
        await process.wait()

    async def close(self) -> None:
        await self.end()
        self._memory.close()


def check_decoder(settings: Settings, program: str = PROGRAM) -> None:
    """Tries one decoder process, and logs which layers its confinement lacks. StartupError if it cannot decode."""

    async def check() -> None:
        decoder = DecoderProcess(settings, program)
        try:
            missing = await decoder.missing_layers()
        finally:
            await decoder.close()
        if missing:
            log.warning(
                "image files are decoded without %s: the kernel, the container or %s=0 refuses it; "
                "see lightllm-mp doctor",
                " and ".join(missing),
                SECCOMP,
            )

    asyncio.run(check())


class DecoderPool:
    """`size` decoder processes; further calls wait for a free one."""

    def __init__(self, settings: Settings, size: int, program: str = PROGRAM) -> None:
        self.size = size
        self._all = [DecoderProcess(settings, program) for _ in range(size)]
        self._free = list(self._all)
        self._turn = asyncio.Semaphore(size)

    async def start(self) -> None:
        """Start all processes without waiting until they are ready. One that the kernel refuses starts at its use."""
        for decoder in self._all:
            with contextlib.suppress(Overloaded):
                await decoder.start()

    async def decode(self, data: bytes, width: int, height: int, video: PatchGrid | None = None) -> Preprocessed:
        async with self._turn:
            decoder = self._free.pop()
            try:
                return await decoder.decode(data, width, height, video)
            finally:
                self._free.append(decoder)

    async def close(self) -> None:
        for decoder in self._all:
            await decoder.close()


def _environment() -> dict[str, str]:
    passed = {name: value for name, value in child_environment().items() if name.startswith(ENVIRONMENT)}
    return {**passed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _pixel_bytes(spec: VisionSpec) -> int:
    steps = spec.preprocess
    if steps.mode == "dynamic":
        most = max(spec.temporal * steps.max_pixels, spec.video.max_pixels if spec.video else 0)
        return 4 * 3 * most + SLACK
    return 4 * 3 * steps.size * steps.size


def _error(done: Done) -> EngineError:
    kind = next((k for k in (PayloadTooLarge, UnsupportedMedia) if k.code == done.code), InvalidRequest)
    return kind(done.message, param="multimodal_params")
